"""What a run learns, one file a task: its data, its model, its losses, and what it leaves behind."""
