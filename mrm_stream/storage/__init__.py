"""Files and folders, on this machine or behind a URL: opened, asked about and published without loss or silence."""
