"""Rows with images, videos and sounds."""

import pytest
from swift_core.data.formats import to_sample
from swift_core.errors import DataError

BOT = {"role": "assistant", "content": "a"}


def user(content):
    return {"role": "user", "content": content}


def test_mllm_rows():
    turns = [user("<image>Who are they?"), BOT, user("What are they doing?<image>"), BOT]
    sample = to_sample({"messages": turns, "images": ["1.jpg", "2.jpg"]}, "f:1")
    assert sample.messages == turns
    assert (sample.images, sample.videos, sample.audios) == (["1.jpg", "2.jpg"], [], [])
    assert sample.has_media


@pytest.mark.parametrize(
    ("column", "value", "kind", "sources"),
    [
        ("images", ["a.png"], "images", ["a.png"]),
        ("image", "a.png", "images", ["a.png"]),
        ("Image", ["https://x.org/a.png"], "images", ["https://x.org/a.png"]),
        ("images", '["a.png"]', "images", ["a.png"]),
        ("images", ["data:image/png;base64,AAAA"], "images", ["data:image/png;base64,AAAA"]),
        ("images", [b"\x89PNG"], "images", [b"\x89PNG"]),
        ("image", {"bytes": b"x", "path": None}, "images", [{"bytes": b"x", "path": None}]),
        ("images", [{"bytes": None, "path": "a.png"}], "images", [{"bytes": None, "path": "a.png"}]),
        ("video", "a.mp4", "videos", ["a.mp4"]),
        ("videos", [["1.png", "2.png"]], "videos", [["1.png", "2.png"]]),
        ("audios", ["a.wav"], "audios", ["a.wav"]),
        ("audio", {"array": [0.0], "sampling_rate": 16000}, "audios", [{"array": [0.0], "sampling_rate": 16000}]),
    ],
)
def test_sources(column, value, kind, sources):
    tag = f"<{kind[:-1]}>"
    with_tag = to_sample({"query": f"{tag}q", "response": "a", column: value}, "f:1")
    without = to_sample({"query": "q", "response": "a", column: value}, "f:1")
    assert with_tag == without
    assert getattr(with_tag, kind) == sources
    assert with_tag.messages[0]["content"] == f"{tag}q"
    assert with_tag.extra == {}


def test_media_without_tags_go_before_the_first_question():
    row = {
        "messages": [{"role": "system", "content": "s"}, user("q"), BOT, user("p"), BOT],
        "images": ["1", "2"],
        "audio": "3",
        "video": "4",
    }
    sample = to_sample(row, "f:1")
    assert [message["content"] for message in sample.messages] == ["s", "<image><image><video><audio>q", "a", "p", "a"]


@pytest.mark.parametrize("row", [{"images": ["x"], "text": "a"}, {"images": ["x"], "query": "", "response": "a"}])
def test_a_caption_gets_its_picture_as_the_question(row):
    assert to_sample(row, "f:1").messages == [user("<image>"), BOT]


def test_text_to_image():
    sample = to_sample({"messages": [user("draw a cat"), {"role": "assistant", "content": "<image>"}], "images": ["cat.png"]}, "f:1")
    assert (sample.messages[1]["content"], sample.images) == ("<image>", ["cat.png"])


def test_legacy_image_paths():
    sample = to_sample({"query": "<img>a b.png</img> or <image> or <img>c.png</img>", "response": "a", "images": ["d.png"]}, "f:1")
    assert sample.messages[0]["content"] == "<image> or <image> or <image>"
    assert sample.images == ["a b.png", "d.png", "c.png"]
    html = "Explain <img>, <img src='x'></img> and\n<img>a\nb</img>"
    assert to_sample({"query": html, "response": "a"}, "f:1").messages[0]["content"] == html


@pytest.mark.parametrize(
    ("parts", "text", "media"),
    [
        ([{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}, {"type": "text", "text": "q"}], "<image>q", (["u"], [], [])),
        ([{"type": "text", "text": "q"}, {"type": "image_url", "image_url": "u"}], "q<image>", (["u"], [], [])),
        ([{"type": "input_text", "text": "q"}, {"type": "input_image", "image_url": "u"}], "q<image>", (["u"], [], [])),
        ([{"type": "image", "image": "u"}, {"type": "text", "text": "q"}], "<image>q", (["u"], [], [])),
        ([{"type": "image", "url": "u"}, {"type": "text", "text": "q"}], "<image>q", (["u"], [], [])),
        ([{"type": "video_url", "video_url": {"url": "v"}}, {"type": "text", "text": "q"}], "<video>q", ([], ["v"], [])),
        ([{"type": "video", "video": ["1", "2"]}, {"type": "text", "text": "q"}], "<video>q", ([], [["1", "2"]], [])),
        ([{"type": "audio_url", "audio_url": {"url": "s"}}], "<audio>", ([], [], ["s"])),
        (
            [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}],
            "<audio>",
            ([], [], ["data:audio/mp3;base64,AAAA"]),
        ),
        (
            [{"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "QUJD"}}, {"type": "text", "text": "q"}],
            "<image>q",
            (["data:image/jpeg;base64,QUJD"], [], []),
        ),
        ([{"type": "image", "source": {"type": "url", "url": "u"}}, {"type": "text", "text": "q"}], "<image>q", (["u"], [], [])),
        (
            [{"type": "text", "text": "q", "image_url": None}, {"type": "image_url", "text": None, "image_url": "u"}],
            "q<image>",
            (["u"], [], []),
        ),
    ],
)
def test_content_parts(parts, text, media):
    sample = to_sample({"messages": [user(parts), BOT]}, "f:1")
    assert sample.messages[0]["content"] == text
    assert (sample.images, sample.videos, sample.audios) == media


def test_parts_with_and_without_sources_mix_with_a_column():
    parts = [{"type": "image"}, {"type": "image_url", "image_url": "own"}, {"type": "text", "text": "and <image>"}]
    sample = to_sample({"messages": [user(parts), BOT], "images": ["first", "third"], "system": "s"}, "f:1")
    assert sample.images == ["first", "own", "third"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": "<image>q", "images": ["1", "2"]}, "1 <image> tag and 2 images .*one <image> tag for each"),
        ({"query": "<image><image>q", "images": ["1"]}, "2 <image> tags and 1 image"),
        ({"query": "<video>q<video>", "videos": ["1"]}, "2 <video> tags and 1 video"),
        ({"query": "<image>q"}, "turn 1 has the tag <image>, and the row has no images"),
        ({"query": [user([{"type": "image"}])]}, "1 <image> tag and 0 images"),
        ({"query": "q", "images": [1]}, "column 'images' is a number, not an image"),
        ({"query": "q", "images": ["a", ""]}, "item 2 of column 'images' is empty, not an image"),
        ({"query": "q", "images": [["a"]]}, "column 'images' is a list .*only a video"),
        ({"query": "q", "videos": [["a", None]]}, "frame 2 of column 'videos' is null"),
        ({"query": "q", "image": {"bytes": None, "path": None}}, "column 'image' has neither 'bytes' nor 'path'"),
        ({"query": [user([{"type": "document"}])]}, "content part of type 'document' .*allowed types: text"),
        ({"query": [user([{"type": "audio_url"}])]}, "a part of type 'audio_url' in turn 1 has no source"),
    ],
)
def test_reasons(row, reason):
    with pytest.raises(DataError, match=f"(?s)^f:3: .*{reason}"):
        to_sample({**row, "response": "a"}, "f:3")


def test_html_elements_beside_real_media():
    sample = to_sample({"query": "<image>Which page has a <video> element?", "response": "a", "images": ["x"]}, "f:1")
    assert (sample.images, sample.videos) == (["x"], [])
