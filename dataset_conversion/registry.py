"""The converters of data sets, by name."""

from collections.abc import Callable

from dataset_conversion.amos22 import find_amos22
from dataset_conversion.btcv import find_btcv
from dataset_conversion.conversion import Conversion
from dataset_conversion.dicom import find_dicom
from dataset_conversion.endovis18 import find_endovis18
from dataset_conversion.msd import find_msd
from dataset_conversion.prostate import find_prostate

CONVERTERS: dict[str, Callable[..., tuple[Conversion, ...]]] = {
    "amos22": find_amos22,
    "btcv": find_btcv,
    "dicom": find_dicom,
    "endovis18": find_endovis18,
    "msd": find_msd,
    "prostate": find_prostate,
}
"""Each searches a download and takes the options of its data set by name (`cli.convert_dataset.OPTIONS`)."""
