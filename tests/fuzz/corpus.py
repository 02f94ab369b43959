"""Small, sound files of every kind that is read, to be damaged."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

from masam_auto.core.dataset import open_dataset
from masam_auto.core.geometry import Geometry
from masam_auto.core.jsonio import write_json
from masam_auto.core.labels import parse_labels
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Plan
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
from masam_auto.formats.probability_files import new_probabilities
from masam_auto.formats.storage import find_locations, write_array, write_locations
from masam_auto.models.checkpoint import Checkpoint, ModelHeader, TrainingState, plan_digest, save_checkpoint
from masam_auto.models.model_archive import write_archive
from masam_auto.preprocessing.fingerprint import extract_fingerprint, write_fingerprint
from tests import raw_data, tiny_training

SHAPE = (4, 9, 11)
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def make_corpus(folder: Path) -> tuple[Path, ...]:
    """Write all files; each is called KIND__NAME.ENDING, or is a folder of a series called so."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    voxels = generator.integers(0, 3, SHAPE).astype(np.int16)
    _volumes(folder, voxels)
    _pictures(folder, generator)
    _tiffs(folder, voxels)
    if importlib.util.find_spec("av"):
        _videos(folder, generator)
    if importlib.util.find_spec("pydicom"):
        _dicom(folder, voxels)
    _our_own(folder, voxels)
    _weights(folder)
    return tuple(sorted(folder.iterdir()))


def _volumes(folder: Path, voxels: np.ndarray) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.7, 0.8, 2.5))
    affine = np.diag([-0.7, -0.8, 2.5, 1.0])
    for name, write in {"nifti": nibabel.Nifti1Image, "nifti2": nibabel.Nifti2Image}.items():
        for ending in (".nii", ".nii.gz"):
            nibabel.save(write(voxels.T, affine), folder / f"image__{name}{ending}")
    for ending in (".mgh", ".mgz"):
        nibabel.save(nibabel.MGHImage(np.ascontiguousarray(voxels.T), affine), folder / f"image__mgh{ending}")
    for ending in (".nrrd", ".mha", ".nhdr", ".mhd", ".gipl"):
        sitk.WriteImage(image, str(folder / f"image__itk{ending}"))
    for ending in (".nrrd", ".mha"):
        sitk.WriteImage(image, str(folder / f"image__packed{ending}"), useCompression=True)
    for data in (*folder.glob("*.raw"), *folder.glob("*.zraw")):
        data.rename(folder / f".{data.name}")  # beside headers alone, and not damaged itself
    for header in (folder / "image__itk.nhdr", folder / "image__itk.mhd"):
        header.write_text(header.read_text().replace("image__itk.", "data."))
    (folder / ".data.raw").write_bytes(voxels.tobytes())


def _pictures(folder: Path, generator: np.random.Generator) -> None:
    colours = generator.integers(0, 255, (9, 11, 3)).astype(np.uint8)
    grey = Image.fromarray(colours[..., 0])
    pictures = {
        "colour.png": Image.fromarray(colours),
        "grey.png": grey,
        "palette.png": Image.fromarray(colours).quantize(8),
        "two.png": grey.convert("1"),
        "deep.png": Image.fromarray(colours[..., 0].astype(np.uint16) * 200),
        "colour.bmp": Image.fromarray(colours),
        "grey.bmp": grey,
        "colour.jpg": Image.fromarray(colours),
        "grey.jpeg": grey,
    }
    for name, picture in pictures.items():
        picture.save(folder / f"image__{name}")


def _tiffs(folder: Path, voxels: np.ndarray) -> None:
    stack = voxels.astype(np.uint8)
    plain: dict[str, Any] = {"photometric": "minisblack"}
    tifffile.imwrite(folder / "image__plain.tif", stack, **plain, metadata=None)
    tifffile.imwrite(folder / "image__zlib.tif", stack, **plain, compression="zlib")
    tifffile.imwrite(folder / "image__big.tif", stack, **plain, bigtiff=True)
    tifffile.imwrite(
        folder / "image__ome.tiff", stack, ome=True, **plain, metadata={"axes": "ZYX", "PhysicalSizeZ": 2.0}
    )
    tifffile.imwrite(folder / "image__imagej.tif", stack, imagej=True, metadata={"axes": "ZYX", "spacing": 2.0})
    Image.fromarray(stack[0]).save(folder / "image__lzw.tif", compression="tiff_lzw")


def _videos(folder: Path, generator: np.random.Generator) -> None:
    import av  # optional: extra `video`

    frames = generator.integers(0, 255, (6, 32, 48, 3)).astype(np.uint8)
    for name, codec in (("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "ffv1"), ("a.mpg", "mpeg2video")):
        with av.open(folder / f"video__{name}", "w") as file:
            stream = file.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0" if codec == "ffv1" else "yuv420p"
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())


def _dicom(folder: Path, voxels: np.ndarray) -> None:
    from tests import dicom_files

    geometry = Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9))
    dicom_files.write_series(folder / "series__plain", voxels, geometry)
    dicom_files.write_series(folder / "series__packed", voxels, geometry)
    for file in (folder / "series__packed").iterdir():
        instance = dicom_files.pydicom().dcmread(file)
        instance.compress("1.2.840.10008.1.2.5")
        instance.save_as(file)
    (folder / "series__enhanced").mkdir()
    dicom_files.write_enhanced(folder / "series__enhanced" / "a", voxels, geometry, order=range(len(voxels)))
    square = np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [4.0, 4.0, 0.0], [0.0, 4.0, 0.0]])
    dicom_files.write_structures(folder / "structures__rs.dcm", {"organ": [square]})


def _our_own(folder: Path, voxels: np.ndarray) -> None:
    """Files of ours: JSON, preprocessed arrays, probabilities, a model and an archive of it."""
    description = {"channel_names": {"0": "MR"}, "labels": LABELS, "file_ending": ".nii.gz", "numTraining": 2}
    video = description | {"sequences": {"clip": ["a", "b"]}, "groups": {"A": ["a"]}}
    regions = description | {"labels": {"background": 0, "all": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    write_json(folder / "dataset__plain.json", description)
    write_json(folder / "dataset__video.json", video)
    write_json(folder / "dataset__regions.json", regions)
    raw = raw_data.make_raw_dataset(folder / ".raw", cases=2, shape=(5, 12, 11))
    paths = Paths(raw=raw.parent, preprocessed=folder, results=folder, weights=folder)
    write_fingerprint(folder / "fingerprint__a.json", extract_fingerprint(open_dataset(paths, raw.name), workers=0))
    shutil.rmtree(folder / ".raw")
    plan = tiny_training.make_plan()
    write_json(folder / "plan__a.json", plan)
    write_json(folder / "splits__a.json", [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}])
    write_json(
        folder / "boxes__a.json", {"a": [{"unit": "voxel", "coordinates": "array", "min": [0, 1, 2], "max": [3, 4, 5]}]}
    )
    write_json(
        folder / "boxes__points.json",
        {"a": [{"unit": "mm", "coordinates": "RAS", "points": [[0, 1, 2.5]], "beside": [[3, 4, 5]], "label": "organ"}]},
    )
    markup = {"markups": [{"type": "ROI", "coordinateSystem": "LPS", "center": [1.0, 2.0, 3.0], "size": [4.0, 4.0, 4.0],
                           "orientation": [1, 0, 0, 0, 1, 0, 0, 0, 1]}]}  # fmt: skip
    write_json(folder / "boxes__a.mrk.json", markup)
    write_json(
        folder / "labelmap__a.json",
        {"labels": {"organ": 1, "lesion": 2}, "prediction": {"8": 0}, "reference": {"7": 1}},
    )
    step = PostprocessingStep(target="organ", values=(1,), rule="keep_largest")
    write_json(folder / "postprocessing__a.json", Postprocessing(steps=(step,)))
    write_array(folder / "array__a.b2nd", voxels[None].astype(np.float32))
    labels = parse_labels(LABELS, None)
    write_locations(folder / "locations__a.npz", find_locations(voxels, labels))
    crop = tuple((0, length) for length in SHAPE)
    geometry = Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9))
    with new_probabilities(
        folder / "probabilities__a.npz",
        crop=crop,
        geometry=geometry,
        outputs=("background", "organ", "lesion"),
        has_regions=False,
    ) as values:
        values[:] = 0.5
    _model(folder, plan)


def _model(folder: Path, plan: Plan) -> None:
    configuration = plan.configuration(None)
    network = tiny_training.build_tiny(plan.network, canvas=configuration.canvas, in_channels=1, num_outputs=3)
    state = network.state_dict()
    header = ModelHeader(
        dataset_name=plan.dataset_name,
        configuration=configuration.name,
        fold="0",
        epoch=2,
        network=plan.network,
        plan_digest=plan_digest(plan, configuration),
        canvas=configuration.canvas,
        in_channels=1,
        num_outputs=3,
    )
    model = folder / ".model" / "masam__axis0"
    checkpoint = Checkpoint(header=header, state=TrainingState(epoch=2), model=state, weights=state, optimizers=())
    save_checkpoint(model / "fold_0", checkpoint, best=True)
    write_json(model / "plan.json", plan)
    write_json(
        model / "dataset.json", {"channel_names": {"0": "MR"}, "labels": tiny_training.LABELS, "file_ending": ".nii.gz"}
    )
    shutil.copytree(model / "fold_0" / "checkpoint_best", folder / "checkpoint__a")
    shutil.rmtree(model / "fold_0" / "checkpoint_latest")
    (model / "fold_0" / "checkpoint_best" / "training.safetensors").unlink()
    write_archive(folder / "archive__a.zip", folder / ".model", dataset_name=plan.dataset_name, masam_auto="1")
    shutil.rmtree(folder / ".model")


def _weights(folder: Path) -> None:
    tensors = {"image_encoder.blocks.0.norm1.weight": torch.ones(8), "mask_decoder.iou_token.weight": torch.ones(1, 8)}
    torch.save(tensors, folder / "weights__new.pth")
    torch.save({"model": tensors}, folder / "weights__old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "weights__a.safetensors")


def kinds(corpus: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by their kind."""
    found: dict[str, list[Path]] = {}
    for path in corpus:
        if not path.name.startswith("."):
            found.setdefault(path.name.partition("__")[0], []).append(path)
    return found
