"""DICOMs made up for the tests."""

from __future__ import annotations

import io
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from mrm_stream.formats.options import Rendering
from mrm_stream.packing.images.checks import ImageError
from mrm_stream.packing.images.dicom import decode_dicom
from mrm_stream.packing.images.encode import encode_image

gdcm: Any = import_module("gdcm")

GDCM_NAMES = {
    uid.JPEGLossless: "JPEGLosslessProcess14",
    uid.JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    uid.JPEGLSLossless: "JPEGLSLossless",
    uid.JPEG2000Lossless: "JPEG2000Lossless",
}
LOSSLESS = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless, *GDCM_NAMES]


def picture(height: int, width: int, bits: int, *, signed: bool = False, seed: int = 0) -> NDArray[Any]:
    """A noisy slope over the whole range of the bits."""
    noise_HW = np.random.default_rng(seed).normal(0, 0.02, (height, width))
    ramp_HW = np.clip(np.linspace(0, 1, height)[:, None] * np.linspace(1, 0.3, width) + noise_HW, 0, 1)
    stored = np.rint(ramp_HW * ((1 << bits) - 1)).astype(np.int64) - (1 << (bits - 1) if signed else 0)
    return stored.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def dicom_of(
    stored: NDArray[Any],
    bits: int,
    syntax: str = uid.ExplicitVRLittleEndian,
    *,
    stream: bytes | None = None,
    **elements: Any,
) -> bytes:
    """A DICOM of these stored values, or of the stream where it is given.

    An element given as None is left out; one given as a DataElement keeps its VR.
    """
    meta = FileMetaDataset()
    encoded_later = stream is None and (syntax == uid.RLELossless or syntax in GDCM_NAMES)
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if encoded_later else uid.UID(syntax)
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
    header = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
    settings: dict[str, Any] = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientName": "Made^Up",
        "Modality": "DX",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": stored.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PixelData": stored.tobytes() if stream is None else encapsulate([stream]),
    }
    for keyword, value in (settings | elements).items():
        if isinstance(value, DataElement):
            header.add(value)
        elif value is not None:
            setattr(header, keyword, value)
    header["PixelData"].VR = "OW"
    if stream is not None:
        header["PixelData"].VR = "OB"
        header["PixelData"].is_undefined_length = True
    if encoded_later and syntax == uid.RLELossless:
        header.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    return transcoded(data, syntax) if encoded_later and syntax in GDCM_NAMES else data


def transcoded(data: bytes, syntax: str) -> bytes:
    """The same DICOM, its pixels encoded by gdcm."""
    descriptor = os.memfd_create("dicom")
    path = f"/proc/self/fd/{descriptor}"
    try:
        Path(path).write_bytes(data)
        reader = gdcm.ImageReader()
        reader.SetFileName(path)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, GDCM_NAMES[uid.UID(syntax)])))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(path)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(path).read_bytes()
    finally:
        os.close(descriptor)


def grey_of(data: bytes) -> NDArray[np.uint8]:
    return decode_dicom(data, "window").grey_HW


def code_of(data: bytes, rendering: Rendering = "window") -> str:
    with pytest.raises(ImageError) as caught:
        encode_image(data, short_side=64, quality=95, rendering=rendering)
    return caught.value.code
