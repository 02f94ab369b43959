"""The readers that nnU-Net's dataset.json may ask for by name."""

from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.errors import DatasetError

READER_NAMES: dict[str, tuple[str, ...]] = {
    "SimpleITKIO": (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl"),
    "NibabelIO": (".nii.gz", ".nii", ".mgz", ".mgh"),
    "NibabelIOWithReorient": (".nii.gz", ".nii", ".mgz", ".mgh"),
    "NaturalImage2DIO": (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"),
    "Tiff3DIO": (".tif", ".tiff"),
}
"""nnU-Net's names for "overwrite_image_reader_writer", and the endings for which they are the same as our reader."""


def check_reader(description: DatasetDescription) -> None:
    """Check that a data set's reader is known.

    All readers of nnU-Net give the same voxels as ours, but NibabelIOWithReorient turns volumes first: here they keep
    their files' axes, and so do the results.

    Raises:
        DatasetError: unknown reader, or a reader that does not read this ending.
    """
    ending, name = description.file_ending, description.reader
    if name is None or name == "None":
        return
    if name not in READER_NAMES:
        raise DatasetError(
            f'{description.name}: dataset.json has "overwrite_image_reader_writer" {name!r}; known readers: '
            f"{', '.join(READER_NAMES)}. Choose one of them, or take the entry out: the file ending decides then."
        )
    if ending.lower() not in READER_NAMES[name]:
        raise DatasetError(
            f"{description.name}: {name} reads {', '.join(READER_NAMES[name])}, not {ending}. Take "
            '"overwrite_image_reader_writer" out of dataset.json: the file ending decides then.'
        )
