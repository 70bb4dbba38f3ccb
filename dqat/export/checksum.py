"""A checksum inside the file: a bit that flipped in storage or on the way is found, weights included.

It is SHA-256 of the whole file with the digest's own place zeroed, and stands in the file's metadata, where
TFLite ignores it.
"""

import hashlib

from dqat.export.flatbuffer import Flatbuffer

_MARK = b"dqat.sha256:"
_PLACEHOLDER = _MARK + bytes(hashlib.sha256().digest_size)


def seal(flatbuffer: Flatbuffer) -> bytes:
    """The serialised model with its checksum; one that it had before goes."""
    flatbuffer.set_metadata("dqat.checksum", _PLACEHOLDER)
    content = flatbuffer.to_bytes()
    if content.count(_PLACEHOLDER) != 1:
        raise ValueError("the model's own data contain the mark of the checksum")
    return content.replace(_PLACEHOLDER, _MARK + hashlib.sha256(content).digest())


def is_wrong(content: bytes) -> bool:
    """Whether the file has a checksum that is not its own. False where it has none: another tool wrote it."""
    place = content.find(_MARK)
    if place < 0:
        return False
    digest = content[place + len(_MARK) : place + len(_PLACEHOLDER)]
    unsealed = content[:place] + _PLACEHOLDER + content[place + len(_PLACEHOLDER) :]
    return hashlib.sha256(unsealed).digest() != digest


def is_there(content: bytes) -> bool:
    """Whether the file carries a checksum."""
    return _MARK in content
