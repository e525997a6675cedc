"""Plain text out of packages: one reader per kind of source, each an iterator over (key, text) documents.

The key names a document within its kind; the split into training and held-out text is by key, so the same page of a
manual falls on the same side in every language.
"""

import email
import email.policy
import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path

Document = tuple[str, str]

# Elements whose end is the end of a line of text, and elements that hold no text at all.
_BLOCKS = frozenset(
    [
        "p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "li", "tr", "td", "th", "br", "dt", "dd", "pre", "blockquote",
        "table", "section", "title",
    ]
)
_SILENT = frozenset(["script", "style", "head", "nav", "footer", "noscript", "svg"])


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in _SILENT
        self._verbatim += tag == "pre"
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in _SILENT))
        self._verbatim = max(0, self._verbatim - (tag == "pre"))
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            # Outside <pre> the line breaks of the source are spaces.
            self.parts.append(data if self._verbatim else re.sub(r"\s+", " ", data))


def html_text(html: str) -> str:
    """The visible text of a page, one block element a line, blank lines dropped."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    lines = (line.rstrip() for line in "".join(parser.parts).replace("¶", "").split("\n"))
    return "\n".join(line if line.startswith("  ") else line.strip() for line in lines if line.strip())


def html_pages(root: Path, pattern: str) -> Iterator[Document]:
    """Every HTML page below `root` that matches `pattern`; the key is its path below the folder that matched."""
    for path in sorted(root.rglob(pattern)):
        parts = path.relative_to(root).parts
        yield "/".join(parts[-3:]), html_text(path.read_text(encoding="utf-8", errors="replace"))


def tagged_corpus(root: Path) -> Iterator[Document]:
    """The Brown corpus: `word/tag` items, one sentence a line; the tags go, the spacing of punctuation returns."""
    for path in sorted(root.rglob("c[a-r][0-9][0-9]")):
        sentences = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = " ".join(item.rsplit("/", 1)[0] for item in line.split())
            words = words.replace("`` ", '"').replace(" ''", '"')
            words = re.sub(r" ([.,;:!?)])", r"\1", words).replace("( ", "(")
            if words:
                sentences.append(words)
        yield path.name, "\n".join(sentences)


def r_strings(root: Path) -> Iterator[Document]:
    """The character vectors of an R data package (`*.rdb`: zlib chunks after a 4-byte length), split at chapters."""
    # A CHARSXP in R's XDR serialization: flags with type 9, then a big-endian length, then the bytes.
    charsxp = re.compile(rb"\x00[\x04\x00][\x00\x10]\x09(....)", re.DOTALL)
    for path in sorted(root.rglob("data/*.rdb")):
        data = path.read_bytes()
        position = 0
        while position < len(data):
            # Each record: its inflated length (4 bytes), then a zlib stream that says itself where it ends.
            stream = zlib.decompressobj()
            inflated = stream.decompress(data[position + 4 :])
            position = len(data) - len(stream.unused_data)
            lines, at = [], 0
            while match := charsxp.search(inflated, at):
                start = match.end()
                length = int.from_bytes(match[1])
                if length > 2_000:
                    at = match.start() + 1
                    continue
                lines.append(inflated[start : start + length].decode("utf-8", errors="replace"))
                at = start + length
            chapters = re.split(r"\n(?=CHAPTER|Chapter|VOLUME)", "\n".join(lines))
            novel = hashlib.sha256("".join(chapters).encode()).hexdigest()[:8]
            for number, chapter in enumerate(chapters):
                yield f"{novel}/{number}", chapter


def c_sources(root: Path, keep_one_in: int) -> Iterator[Document]:
    """C files out of the kernel's one tar.xz: one in `keep_one_in` by the hash of the path, opening comment removed."""
    (archive,) = root.rglob("linux-source-*.tar.xz")
    with tarfile.open(archive) as tar:
        for member in tar:
            path = member.name.partition("/")[2]
            if not path.endswith(".c") or not 4_000 < member.size < 80_000 or share_of(path) * keep_one_in >= 1:
                continue
            file = tar.extractfile(member)
            assert file is not None
            text = file.read().decode("utf-8", errors="replace")
            yield path, re.sub(r"\A(\s*//[^\n]*\n|\s*/\*.*?\*/)+\s*", "", text, flags=re.DOTALL)


def messages(root: Path) -> Iterator[Document]:
    """E-mail: sender, subject and the body's text of every message; headers and attachments stay behind."""
    for path in sorted(root.rglob("*.json")):
        if path.name in ("package.json", "file_list.json"):
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if "text" not in record:
            continue
        raw = record["text"].partition("\n")[2]  # the first line is the mailbox's own "From " line
        try:
            message = email.message_from_string(raw, policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            body = message.get_body(("plain", "html"))
            text = body.get_content() if body else ""
            if body and body.get_content_type() == "text/html":
                text = html_text(text)
            sender, subject = message["from"], message["subject"]
        except (LookupError, ValueError, AttributeError, TypeError, IndexError, AssertionError):
            continue  # a message too broken for the parser is no loss among six thousand
        text = "\n".join(line.rstrip() for line in text.splitlines())
        yield f"{path.parent.name}/{path.stem}", f"From: {sender}\nSubject: {subject}\n\n{text}"


def unique_lines(documents: Iterable[Document], *, shortest: int = 30) -> Iterator[Document]:
    """Drop every line of at least `shortest` characters that an earlier document (or line) already held.

    Menus, licences and quoted mail would otherwise be learned by heart. Shorter lines are part of how text looks.
    """
    seen: set[int] = set()
    for key, text in documents:
        kept = []
        for line in text.split("\n"):
            bare = line.strip().lstrip("> ")
            if len(bare) >= shortest:
                mark = hash(bare)
                if mark in seen:
                    continue
                seen.add(mark)
            kept.append(line)
        yield key, re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def lines_in_script(documents: Iterable[Document], script: str) -> Iterator[Document]:
    """Keep the lines that hold a character of `script` (a regular expression's character class).

    Manuals leave sentences untranslated; in a language of its own script they can be told without a dictionary.
    """
    for key, text in documents:
        yield key, "\n".join(line for line in text.split("\n") if re.search(script, line))


def is_held_out(key: str, share: float) -> bool:
    """Whether the document `key` belongs to the held-out text: a fixed function of the key alone."""
    return share_of("held-out:" + key) < share


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
