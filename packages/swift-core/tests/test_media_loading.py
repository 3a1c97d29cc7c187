"""Media from every kind of source, and what is said about those that cannot be read."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from swift_core.config.sections import MediaSection
from swift_core.data.media import MediaLoader, evenly, resampled, resized
from swift_core.errors import DataError, MissingDependencyError


def picture(size: tuple[int, int] = (8, 6), kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 200 if mode == "L" else (255, 0, 0) if mode == "RGB" else (255, 0, 0, 0)).save(stream, kind, **options)
    return stream.getvalue()


def sound(rate: int = 8000, seconds: float = 0.5, width: int = 2, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    count = int(rate * seconds)
    tone = np.sin(2 * np.pi * 440 * np.arange(count) / rate)
    whole = np.repeat((tone * (2 ** (8 * width - 1) - 1)).astype(np.int64), channels)
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    else:
        data = b"".join(int(value).to_bytes(width, "little", signed=True) for value in whole)
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return stream.getvalue()


def test_an_image_comes_from_every_kind_of_source(tmp_path: Path) -> None:
    data = picture()
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    sources: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").as_uri(),
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        {"bytes": text},
        f"data:image/png;base64,{text}",
        Image.open(io.BytesIO(data)),
        np.asarray(Image.open(io.BytesIO(data))),
    ]
    for source in sources:
        image = MediaLoader().image(source)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (8, 6), (255, 0, 0))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_usual_formats_are_read(kind: str) -> None:
    assert MediaLoader().image(picture(kind=kind)).size == (8, 6)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "PCX"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match="not an image that can be read"):
        MediaLoader().image(picture(size=(16, 16), kind=kind))


def test_the_first_frame_of_an_animation_and_upright_photos() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (0, 0, 255)).save(stream, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 6), (0, 255, 0))])
    assert MediaLoader().image(stream.getvalue()).getpixel((0, 0)) == (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert MediaLoader().image(picture(kind="JPEG", exif=exif)).size == (6, 8)


def huge_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000)])
def test_too_many_pixels_are_refused_by_the_header(size: tuple[int, int]) -> None:
    with pytest.raises(DataError):
        MediaLoader().image(huge_png(*size))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nothing.png", "there is no file"),
        ("", "str"),
        (b"", "empty|bytes"),
        (3, "given as int"),
        (None, "given as NoneType"),
        ({"bytes": None, "path": None}, "NoneType"),
        (b"\x89PNG\r\n\x1a\n broken", "not an image"),
        (picture(size=(200, 200), kind="JPEG")[:300], "not an image"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png", "comma"),
        ("http://127.0.0.1:1/a.png", "private network"),
        ("a\0b", "file|path"),
        ("x" * 5000, "path|file"),
    ],
)
def test_what_cannot_be_read_is_a_bad_row_with_its_place(source: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        MediaLoader().image(source, "rows.jsonl:7")
    assert str(caught.value).startswith("rows.jsonl:7: ")
    assert caught.value.fix
    assert len(str(caught.value)) < 500


def test_limits_of_bytes(tmp_path: Path) -> None:
    loader = MediaLoader(MediaSection(media_max_bytes=50))
    (tmp_path / "a.png").write_bytes(picture())
    text = base64.b64encode(picture()).decode()
    for source in (picture(), str(tmp_path / "a.png"), f"data:;base64,{text}", {"bytes": text}):
        with pytest.raises(DataError, match="more than 50"):
            loader.image(source)


def test_relative_paths_start_at_media_dir_or_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("data", "media", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("{}\n")
    (tmp_path / "data" / "a.png").write_bytes(picture(size=(1, 1)))
    (tmp_path / "media" / "a.png").write_bytes(picture(size=(2, 2)))
    (tmp_path / "here" / "b.png").write_bytes(picture(size=(3, 3)))
    monkeypatch.chdir(tmp_path / "here")
    origin = f"{tmp_path / 'data' / 'rows.jsonl'}:1"
    assert MediaLoader().image("a.png", origin).size == (1, 1)
    assert MediaLoader().image("b.png", origin).size == (3, 3)
    named = MediaLoader(MediaSection(media_dir=str(tmp_path / "media")))
    assert named.image("a.png", origin).size == (2, 2)
    with pytest.raises(DataError, match="there is no file"):
        named.image("b.png", origin)


def test_paths_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    with pytest.raises(DataError, match="paths are not read"):
        MediaLoader(allow_local=False).image(str(tmp_path / "a.png"))


def test_pixel_bounds_keep_the_proportions() -> None:
    assert MediaLoader(MediaSection(max_pixels=50)).image(picture(size=(20, 10))).size == (10, 5)
    assert MediaLoader(MediaSection(min_pixels=800)).image(picture(size=(20, 10))).size == (40, 20)
    image = Image.new("RGB", (20, 10))
    assert resized(image, 100, 300) is image
    assert resized(Image.new("RGB", (1000, 1)), None, 10).size == (100, 1)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_of_every_width_give_the_same_tone(width: int, channels: int) -> None:
    samples = MediaLoader().audio(sound(width=width, channels=channels), sampling_rate=8000)
    expected = np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
    assert samples.shape == (4000,)
    assert samples.dtype == np.float32
    assert np.abs(samples - expected).max() < 0.02


def test_sounds_are_resampled() -> None:
    samples = MediaLoader().audio(sound(rate=8000), sampling_rate=16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    assert np.abs(samples - expected)[100:-100].max() < 0.02
    high = np.sin(2 * np.pi * 6000 * np.arange(16000) / 16000)
    assert np.abs(resampled(high, 16000, 8000)).max() < 0.01  # nothing folds back
    given = MediaLoader().audio({"array": high, "sampling_rate": 16000}, sampling_rate=16000)
    assert np.allclose(given, high, atol=1e-6)


def test_sounds_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match=r"lasts 0|lasts 1"):
        MediaLoader(MediaSection(media_max_seconds=0.2)).audio(sound(), sampling_rate=8000)
    with pytest.raises(DataError, match="no sound"):
        MediaLoader().audio(sound(seconds=0), sampling_rate=8000)
    expected = DataError if find_spec("soundfile") else MissingDependencyError
    with pytest.raises(expected):
        MediaLoader().audio(b"ID3 this is no sound", sampling_rate=8000)


def test_a_video_may_be_a_list_of_frames() -> None:
    frames = [picture(size=(8, 6)) for _ in range(10)]
    video = MediaLoader(MediaSection(max_frames=4, video_max_pixels=12)).video(frames)
    assert video.frames.shape == (4, 3, 4, 3)
    assert video.frames.dtype == np.uint8
    assert (video.total, video.indices, video.fps) == (4, [0, 1, 2, 3], None)
    with pytest.raises(DataError, match="2 sizes"):
        MediaLoader().video([picture(), picture(size=(9, 6))])
    with pytest.raises(DataError, match="no frames"):
        MediaLoader().video([])


def test_a_video_file_gives_frames_evenly() -> None:
    av = pytest.importorskip("av")
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width, track.height, track.pix_fmt = 32, 16, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), number * 8, np.uint8), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    video = MediaLoader(MediaSection(fps=1)).video(stream.getvalue())
    assert (video.frames.shape, video.fps, video.total, video.indices) == ((3, 16, 32, 3), 10.0, 30, [0, 14, 29])
    assert np.abs(video.frames[:, 8, 16, 0].astype(int) - [0, 112, 232]).max() < 12
    with pytest.raises(DataError, match="not a video"):
        MediaLoader().video(stream.getvalue()[:200])


def test_a_video_file_without_its_library_names_what_to_install() -> None:
    if find_spec("av"):
        pytest.skip("av is installed")
    with pytest.raises(MissingDependencyError, match="pip install 'av'"):
        MediaLoader().video(b"\0\0\0\x18ftypmp42")


def test_evenly_takes_first_and_last() -> None:
    assert evenly(5, 5) == [0, 1, 2, 3, 4]
    assert evenly(100, 2) == [0, 99]
    assert evenly(0, 3) == []
