"""Sealed secrets by the format that common/seal.h states, without the product's code."""
import ctypes
import ctypes.util
import hashlib
import os

_sodium = ctypes.CDLL(ctypes.util.find_library("sodium") or "libsodium.so.23")
assert _sodium.sodium_init() >= 0


def write_key(directory, audience):
    """A new random key file of the audience; the key."""
    directory.mkdir(parents=True, exist_ok=True)
    key = os.urandom(32)
    path = directory / (audience.replace(":", "-") + ".key")
    path.write_text(key.hex() + "\n")
    path.chmod(0o600)
    return key


def key_id(key):
    return hashlib.blake2b(b"hypersdk key id", key=key, digest_size=32).digest()[:8]


def seal(key, data):
    nonce = os.urandom(24)
    box = ctypes.create_string_buffer(len(data) + 16)
    assert _sodium.crypto_secretbox_easy(box, data, ctypes.c_ulonglong(len(data)), nonce, key) == 0
    return bytes([1]) + key_id(key) + nonce + box.raw
