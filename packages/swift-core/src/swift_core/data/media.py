"""Images, sounds and videos from wherever a row names them, within limits. What cannot be read is a bad row, never a crash."""

from __future__ import annotations

import base64
import binascii
import io
import math
import warnings
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image, ImageOps

from swift_core.config.sections import MediaSection
from swift_core.data.fetch import FetchLimits, fetch, shown
from swift_core.errors import DataError, MissingDependencyError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Image formats that are decoded; of a GIF the first frame."""

DEFAULT_FPS, DEFAULT_FRAMES = 2.0, 64

# What decoders raise on damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError)


@dataclass(slots=True)
class Video:
    """Frames taken from a video.

    Attributes:
        frames: `[frames, height, width, 3]`, uint8.
        fps: frames per second of the video they were taken from; None for frames that were given one by one.
        indices: number of each frame in that video.
        total: frames of that video.
    """

    frames: np.ndarray
    fps: float | None
    indices: list[int]
    total: int


@dataclass(slots=True)
class LoadedMedia:
    """The decoded media of a sample, in the order of its tags."""

    images: list[Image.Image] = field(default_factory=list[Image.Image])
    videos: list[Video] = field(default_factory=list[Video])
    audios: list[np.ndarray] = field(default_factory=list[np.ndarray])


class MediaLoader:
    """Reads media within the limits of a section.

    A source is a path, a URL, a data URI, bytes, `{"bytes": ..., "path": ...}`, `{"url": ...}`, or what a Python program has at
    hand: a Pillow image, an array, `{"array": ..., "sampling_rate": ...}`.

    Args:
        section: sizes and limits.
        allow_local: whether paths are read at all; false for requests from strangers.
    """

    def __init__(self, section: MediaSection | None = None, *, allow_local: bool = True) -> None:
        self.section = section or MediaSection()
        self.allow_local = allow_local

    # --- bytes ---

    def read(self, source: Any, origin: str = "") -> bytes:
        """Return the bytes of a source.

        Raises:
            DataError: when there is nothing to read, or more than the limits allow.
        """
        limit = self.section.media_max_bytes
        if isinstance(source, Mapping):
            source = self._from_mapping(cast("Mapping[str, Any]", source), origin)
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
        elif isinstance(source, str | Path) and (text := str(source)):
            if text[:5].lower() == "data:":
                data = _from_data_uri(text, limit, origin)
            elif text[:7].lower() in ("http://", "https:/"):
                data = self._fetch(text, origin)
            else:
                data = self._from_path(text, origin)
        else:
            raise DataError(
                f"a medium is given as {type(source).__name__}",
                location=origin or None,
                fix='give a path, a URL, a data URI, bytes or {"bytes": ..., "path": ...}',
            )
        if len(data) > limit:
            raise _too_large(len(data), limit, describe(source), origin)
        if not data:
            raise DataError(f"{describe(source)} is empty", location=origin or None, fix=_FIX)
        return data

    def _from_mapping(self, source: Mapping[str, Any], origin: str) -> Any:
        value = source.get("bytes")
        if isinstance(value, str):
            return _decode_base64(value, self.section.media_max_bytes, "bytes", origin)
        return value if value is not None else source.get("path") or source.get("url")

    def _fetch(self, url: str, origin: str) -> bytes:
        section = self.section
        bounds = FetchLimits(section.media_max_bytes, section.media_timeout, allow_private=section.media_allow_private)
        try:
            return fetch(url, bounds)
        except DataError as error:
            raise DataError(error.message, location=origin or None, fix=error.fix) from error

    def _from_path(self, text: str, origin: str) -> bytes:
        if not self.allow_local:
            raise DataError("paths are not read here", location=origin or None, fix="send a data URI or a URL")
        path = self.locate(text, origin)
        try:
            size = path.stat().st_size
            if size > self.section.media_max_bytes:
                raise _too_large(size, self.section.media_max_bytes, describe(text), origin)
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{describe(text)} cannot be read ({error.strerror or error})", location=origin or None, fix=_FIX) from error

    def locate(self, text: str, origin: str = "") -> Path:
        """Return the file that a path means: relative to `media_dir`, else to the data file's folder, else to the current one.

        Raises:
            DataError: when there is no such file.
        """
        path = Path(unquote(urlsplit(text).path)) if text.startswith("file:") else Path(text).expanduser()
        folders = [Path(self.section.media_dir).expanduser()] if self.section.media_dir else [*_folder_of(origin), Path()]
        places = [path] if path.is_absolute() else list(dict.fromkeys(folder / path for folder in folders))
        try:
            found = next((place for place in places if place.is_file()), None)
        except (OSError, ValueError) as error:  # a name that is too long, or holds a null character
            raise DataError(
                f"{describe(text)} is not a path ({getattr(error, 'strerror', None) or error})", location=origin or None, fix=_FIX
            ) from error
        if found is None:
            named = list(dict.fromkeys("the current folder" if folder == Path() else str(folder) for folder in folders))
            where = "" if path.is_absolute() else f" in {' or '.join(named)}"
            raise DataError(
                f"there is no file {describe(text)}{where}",
                location=origin or None,
                fix="correct the path, or name the folder it starts from with --media_dir",
            )
        return found

    # --- images ---

    def image(self, source: Any, origin: str = "") -> Image.Image:
        """Return an image in RGB, upright, within `min_pixels` and `max_pixels`.

        Raises:
            DataError: when it cannot be read, is of another format or has too many pixels.
        """
        return resized(self._picture(source, origin), self.section.min_pixels, self.section.max_pixels)

    def _picture(self, source: Any, origin: str) -> Image.Image:
        if isinstance(source, np.ndarray):
            source = Image.fromarray(source)
        image = source if isinstance(source, Image.Image) else None
        try:
            # The header alone is read here: the size is known before a pixel is decoded.
            opened = image if image is not None else _opened(self.read(source, origin))
            width, height = opened.size
            if width * height > self.section.media_max_pixels:
                raise DataError(
                    f"{describe(source)} has {width} x {height} pixels, more than {self.section.media_max_pixels:,}",
                    location=origin or None,
                    fix="shrink the file, or raise --media_max_pixels",
                )
            return ImageOps.exif_transpose(opened).convert("RGB")
        except (DataError, MissingDependencyError):
            raise
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            fix = f"mend or remove the file; formats: {', '.join(FORMATS)}"
            raise DataError(f"{describe(source)} is not an image that can be read", location=origin or None, fix=fix) from error

    # --- sounds ---

    def audio(self, source: Any, *, sampling_rate: int, origin: str = "") -> np.ndarray:
        """Return a sound as one channel of float32 samples at a sampling rate, `[samples]`.

        Raises:
            DataError: when it cannot be read or is too long.
            MissingDependencyError: when it is no plain WAV file and `soundfile` is not installed.
        """
        if isinstance(source, np.ndarray):
            source = {"array": source, "sampling_rate": sampling_rate}
        if isinstance(source, Mapping) and cast("Mapping[str, Any]", source).get("array") is not None:
            given = cast("Mapping[str, Any]", source)
            wave_form, rate = np.asarray(given["array"], dtype=np.float32), int(given.get("sampling_rate") or sampling_rate)
            wave_form = wave_form.mean(axis=int(np.argmin(wave_form.shape))) if wave_form.ndim > 1 else wave_form
        else:
            wave_form, rate = self._decode_sound(source, origin)
        if len(wave_form) > rate * self.section.media_max_seconds:
            raise self._too_long(len(wave_form) / rate, source, origin)
        if not len(wave_form):
            raise DataError(f"{describe(source)} holds no sound", location=origin or None, fix=_FIX)
        return resampled(wave_form, rate, sampling_rate)

    def _decode_sound(self, source: Any, origin: str) -> tuple[np.ndarray, int]:
        data = self.read(source, origin)
        try:
            with wave.open(io.BytesIO(data)) as file:
                seconds = file.getnframes() / max(1, file.getframerate())
                if seconds > self.section.media_max_seconds:
                    raise self._too_long(seconds, source, origin)
                return _pcm(file.readframes(file.getnframes()), file.getsampwidth(), file.getnchannels()), file.getframerate()
        except (wave.Error, EOFError, *_DAMAGED) as error:
            if isinstance(error, DataError):
                raise
        try:
            import soundfile  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError("soundfile", needed_for=f"the sound {describe(source)}", install="soundfile") from error
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                if len(file) > file.samplerate * self.section.media_max_seconds:
                    raise self._too_long(len(file) / file.samplerate, source, origin)
                return file.read(dtype="float32", always_2d=True).mean(axis=1), int(file.samplerate)
        except (soundfile.SoundFileError, *_DAMAGED) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{describe(source)} is not a sound that can be read", location=origin or None, fix=_FIX) from error

    def _too_long(self, seconds: float, source: Any, origin: str) -> DataError:
        return DataError(
            f"{describe(source)} lasts {seconds:.0f} s, more than {self.section.media_max_seconds:g}",
            location=origin or None,
            fix="cut the file, or raise --media_max_seconds",
        )

    # --- videos ---

    def video(self, source: Any, origin: str = "") -> Video:
        """Return frames of a video: all of those given one by one, else `fps` a second, in both cases at most `max_frames`.

        Raises:
            DataError: when it cannot be read or exceeds the limits.
            MissingDependencyError: when it is a file and `av` is not installed.
        """
        most = self.section.max_frames or DEFAULT_FRAMES
        if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray):
            chosen = evenly(len(source), min(most, len(source)))
            if not chosen:
                raise DataError("a video has no frames", location=origin or None, fix=_FIX)
            frames = [self._frame(self._picture(cast("Sequence[Any]", source)[index], origin)) for index in chosen]
            sizes = {frame.size for frame in frames}
            if len(sizes) > 1:
                raise DataError(f"the frames of a video have {len(sizes)} sizes", location=origin or None, fix="give frames of one size")
            return Video(np.stack([np.asarray(frame) for frame in frames]), None, list(range(len(frames))), len(frames))
        return self._decode_video(source, most, origin)

    def _frame(self, image: Image.Image) -> Image.Image:
        return resized(image, None, self.section.video_max_pixels)

    def _decode_video(self, source: Any, most: int, origin: str) -> Video:
        data = self.read(source, origin)
        try:
            import av  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError("av", needed_for=f"the video {describe(source)}", install="av") from error
        try:
            with av.open(io.BytesIO(data)) as container:
                stream = container.streams.video[0]
                rate = float(stream.average_rate or 0) or 24.0
                if stream.width * stream.height > self.section.media_max_pixels:
                    raise DataError(
                        f"{describe(source)} has frames of {stream.width} x {stream.height} pixels",
                        location=origin or None,
                        fix="shrink the file, or raise --media_max_pixels",
                    )
                timed = stream.duration is not None and stream.time_base is not None
                seconds = float(stream.duration * stream.time_base) if timed else float(container.duration or 0) / 1e6  # pyright: ignore
                total = stream.frames or round(seconds * rate)
                if total > rate * self.section.media_max_seconds:
                    raise self._too_long(total / rate, source, origin)
                return self._take(container, total, rate, most, describe(source))
        except (av.FFmpegError, *_DAMAGED) as error:  # pyright: ignore[reportPrivateImportUsage]
            if isinstance(error, DataError):
                raise
            raise DataError(f"{describe(source)} is not a video that can be read", location=origin or None, fix=_FIX) from error

    def _take(self, container: Any, total: int, rate: float, most: int, name: str) -> Video:
        wanted = set(evenly(total, min(most, max(1, round(total / rate * (self.section.fps or DEFAULT_FPS))))))
        taken: list[int] = []
        frames: list[np.ndarray] = []
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                taken.append(index)
                frames.append(np.asarray(self._frame(frame.to_image())))
            if index >= total:
                break
        if not frames:
            raise ValueError(f"{name} has no frames")
        return Video(np.stack(frames), rate, taken, total)

    # --- a sample ---

    def load(self, images: Sequence[Any], videos: Sequence[Any], audios: Sequence[Any], *, sampling_rate: int, origin: str) -> LoadedMedia:
        """Return all media of a sample.

        Raises:
            DataError: when one of them cannot be read.
            MissingDependencyError: when decoding needs a library that is not installed.
        """
        return LoadedMedia(
            [self.image(source, origin) for source in images],
            [self.video(source, origin) for source in videos],
            [self.audio(source, sampling_rate=sampling_rate, origin=origin) for source in audios],
        )


_FIX = "mend or replace the file, or leave such rows out with --on_bad_row skip"


def describe(source: Any) -> str:
    """Return a short name of a source for messages, without secrets and without its bytes."""
    if isinstance(source, Mapping):
        named = cast("Mapping[str, Any]", source)
        return describe(named.get("path") or named.get("url") or named.get("bytes") or "a medium without a source")
    if isinstance(source, bytes | bytearray | memoryview):
        return f"a medium of {len(source):,} bytes"
    if not isinstance(source, str | Path):
        return f"a {type(source).__name__}"
    text = str(source)
    if text[:5].lower() == "data:":
        return "a data URI"
    if "://" in text[:10]:
        return shown(text)
    return repr(text if len(text) <= 120 else text[:117] + "...")


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit speaks instead
        return Image.open(io.BytesIO(data), formats=FORMATS)


def resized(image: Image.Image, low: int | None, high: int | None) -> Image.Image:
    """Return an image with its proportions kept and its pixels between two bounds; as it is where it is within them."""
    width, height = image.size
    pixels = width * height
    factor = math.sqrt(high / pixels) if high and pixels > high else math.sqrt(low / pixels) if low and pixels < low else None
    if factor is None:
        return image
    fit = math.floor if factor < 1 else math.ceil
    return image.resize((max(1, fit(width * factor)), max(1, fit(height * factor))), Image.Resampling.BICUBIC)


def evenly(total: int, count: int) -> list[int]:
    """Return `count` numbers spread over 0 to total - 1.

    >>> evenly(10, 3)
    [0, 4, 9]
    """
    return [int(index) for index in np.linspace(0, total - 1, count)] if total > 0 and count > 0 else []


def resampled(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Return a sound at another sampling rate, cut off above half of the lower rate so that nothing folds back.

    Args:
        samples: `[samples]`.
        rate: samples per second now.
        target: samples per second wanted.
    """
    if rate == target:
        return samples.astype(np.float32)
    length = max(1, round(len(samples) * target / rate))
    spectrum = np.fft.rfft(samples.astype(np.float64))
    kept = np.zeros(length // 2 + 1, dtype=complex)
    shared = min(len(spectrum), len(kept))
    kept[:shared] = spectrum[:shared]
    return (np.fft.irfft(kept, length) * (length / len(samples))).astype(np.float32)


def _pcm(data: bytes, width: int, channels: int) -> np.ndarray:
    if width == 1:
        samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        triples = np.frombuffer(data[: len(data) // 3 * 3], np.uint8).reshape(-1, 3).astype(np.int32)
        whole = triples[:, 0] << 8 | triples[:, 1] << 16 | triples[:, 2] << 24
        samples = (whole >> 8).astype(np.float32) / 2**23
    else:
        samples = np.frombuffer(data[: len(data) // width * width], f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return samples[: len(samples) // channels * channels].reshape(-1, channels).mean(axis=1)


def _folder_of(origin: str) -> list[Path]:
    """Return the folder of the file in `file:line`, as a list that is empty where the origin is no file."""
    path = Path(origin.rpartition(":")[0]) if ":" in origin else Path(origin)
    return [path.parent] if origin and path.is_file() else []


def _from_data_uri(text: str, limit: int, origin: str) -> bytes:
    header, comma, payload = text[5:].partition(",")
    if not comma:
        raise DataError("a data URI has no comma", location=origin or None, fix="write it as data:image/png;base64,...")
    if header.lower().endswith(";base64"):
        return _decode_base64(payload, limit, "a data URI", origin)
    return unquote_to_bytes(payload)


def _decode_base64(text: str, limit: int, name: str, origin: str) -> bytes:
    if len(text) * 3 // 4 > limit + 3:
        raise _too_large(len(text) * 3 // 4, limit, name, origin)
    try:
        return base64.b64decode("".join(unquote(text).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: not base64 ({error})", location=origin or None, fix=_FIX) from error


def _too_large(size: int, limit: int, name: str, origin: str) -> DataError:
    return DataError(
        f"{name} has {size:,} bytes, more than {limit:,}", location=origin or None, fix="shrink the file, or raise --media_max_bytes"
    )
