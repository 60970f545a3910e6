"""Images made to harm: headers that promise more than there is, and streams that unpack to more than they should."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset


def jpeg(height: int = 60, width: int = 50) -> bytes:
    pixels_HW = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width))
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HW[..., None]), 90, "GRAY", "Gray")
    return content


def jpeg_of_size(height: int, width: int) -> bytes:
    content = bytearray(jpeg())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def jpeg_of_many_scans(scans: int) -> bytes:
    """A progressive JPEG of a large image, whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + b"\xff\xd9"


def png(width: int, height: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        *more,
        (b"IDAT", pixels),
        (b"IEND", b""),
    ]
    framed = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def zeros(count: int) -> bytes:
    """So many zeros, compressed; they are never in memory at once."""
    packer = zlib.compressobj(9)
    return repeated(packer, count)


def repeated(packer: Any, count: int) -> bytes:
    """As if so many zeros were compressed: that of one mebibyte, repeated, which is valid after a full flush."""
    begun = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return bytes(begun + again * ((count >> 20) - 1) + packer.flush())


def dicom(rows: int, columns: int, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.UID(syntax)
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
    header = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.PatientName, header.Modality = "Made^Up", "DX"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = rows, columns
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.PixelData = bytes(2000)
    header["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom_that_unpacks() -> bytes:
    """A deflated DICOM: 2 GB of zeros after its header."""
    content = dicom(100, 100, uid.DeflatedExplicitVRLittleEndian)
    body = repeated(zlib.compressobj(9, zlib.DEFLATED, -15), 2 << 30)
    length = struct.unpack_from("<I", content, 140)[0]
    return content[: 144 + length] + body
