#!/usr/bin/env python3
"""A second implementation of the writing side of the format, made from doc/FORMAT.md alone.

It owns the golden vectors beside it: `python3 tests/vectors/reference.py` rewrites them (needs the Python package
`cryptography`). Everything is deterministic, so a run that changes a file means that this script changed the format.
`tests/format_vectors.rs` holds the Rust code to the files; it does not run this script.
"""
import base64
import hashlib
import hmac
import json
import pathlib
import struct
import zlib

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

PAGE, CLEAR, PLAIN = 4096, 48, 4048
SUITE = 1


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def extract(salt, key):
    return mac(salt, key)


def expand(prk, info):
    """The first 32 bytes of HKDF-Expand."""
    return mac(prk, info, b"\x01")


def b64(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def pattern(n, seed):
    """n bytes that are easy to make anywhere: byte i is (7·i + seed) mod 256."""
    return bytes((7 * i + seed) % 256 for i in range(n))


def gcm(key, nonce, aad, plain):
    """(ciphertext, tag)"""
    out = AESGCM(key).encrypt(nonce, plain, aad)
    return out[:-16], out[-16:]


# Keys ---------------------------------------------------------------------------------------------------------------

def file_prk(file_id, dek):
    return extract(file_id, dek)


def file_commitment(prk):
    return expand(prk, b"envelopefs v1 file commit")


def volume_keys(volume_id, volume_key):
    prk = extract(volume_id, volume_key)
    names = ["names", "dir", "targets", "xattrs", "origin", "config", "commit"]
    return {n: expand(prk, b"envelopefs v1 volume " + n.encode()) for n in names}


def key_commitment(key):
    return mac(key, b"envelopefs v1 key commitment")


def siv(key, label):
    return AESSIV(expand(key, label + b" s2v") + expand(key, label + b" ctr"))


def siv_seal(key, label, ad, plain):
    # The package refuses an empty plaintext; no vector has one.
    return siv(key, label).encrypt(plain, [ad])


# Blocks -------------------------------------------------------------------------------------------------------------

def block(prk, salt, nonce, index, plain):
    clear = salt + struct.pack("<HH", len(plain), 0) + bytes(12)
    aad = b"envelopefs v1 data" + struct.pack("<HQ", SUITE, index) + clear
    key = expand(prk, b"envelopefs v1 file blk" + salt)
    ct, tag = gcm(key, nonce, aad, plain.ljust(PLAIN, b"\0"))
    return nonce + tag + clear + ct


# Headers ------------------------------------------------------------------------------------------------------------

def wrap_dek(branch_key, branch_id, volume_id, file_id, dek, salt, nonce):
    label = b"envelopefs v1 dek wrap"
    kek = expand(extract(salt, branch_key), label)
    ct, tag = gcm(kek, nonce, label + struct.pack("<H", SUITE) + volume_id + file_id + branch_id, dek)
    return nonce + ct + tag


def tlv(kind, body):
    return struct.pack("<HH", kind, len(body)) + body


def string(raw):
    return struct.pack("<Q", len(raw)) + raw


def cmk_slot(slot, target):
    return (slot["commitment"] + bytes([target]) + string(slot["provider"].encode())
            + string(slot["key_ref"].encode()) + string(slot["blob"]))


def header(h, prk, origin, extra_tlvs=b"", message_extra=b""):
    """`extra_tlvs` go before all others, `message_extra` is what of them is authenticated."""
    fixed = (b"ENVLPFS\0" + struct.pack("<HHII", 1, SUITE, h["pages"], h["flags"]) + bytes(4)
             + struct.pack("<QQQ", h["generation"], h["size_floor"], h["sealed_size"])
             + h["volume_id"] + h["file_id"] + h["commitment"] + h["previous_commitment"] + bytes(32))
    assert len(fixed) == 192
    tlvs, message = extra_tlvs, fixed + message_extra
    if h["wrapped_dek"]:
        w = h["wrapped_dek"]
        t = tlv(0xC001, w["branch_id"] + w["salt"] + w["wrapped"])
        tlvs, message = tlvs + t, message + t
    for s in h["slots"]:
        tlvs += tlv(0x8002, cmk_slot(s, 1 if h["wrapped_dek"] else 0))
        message += struct.pack("<H", 0x8002) + s["commitment"]
    body = fixed + tlvs
    length = h["pages"] * PAGE
    assert len(body) <= length - 72
    tag = mac(origin, message) if origin else bytes(32)
    body = body.ljust(length - 72, b"\0") + mac(expand(prk, b"envelopefs v1 file hdr"), message) + tag + bytes(4)
    return body + struct.pack("<I", zlib.crc32(body))


def fix_crc(slot):
    return slot[:-4] + struct.pack("<I", zlib.crc32(slot[:-4]))


# Names and small objects --------------------------------------------------------------------------------------------

def name(names_key, dir_id, plain):
    sealed = siv_seal(names_key, b"envelopefs v1 names", dir_id, plain)
    text = b64(sealed)
    if len(text) <= 255:
        return {"entry": text}
    short = ".envelopefs.long." + b64(hashlib.sha256(sealed).digest())
    return {"entry": short, "companion": short + ".name", "companion_target": text}


def dir_record(key, dir_id, parent, cmks=()):
    said = dir_id + parent
    for provider, key_ref in cmks:
        said += bytes([len(provider)]) + provider.encode() + struct.pack("<H", len(key_ref.encode())) + key_ref.encode()
    return b64(said + mac(key, said)[:12])


def target(key, ident, plain):
    return b64(ident + siv_seal(key, b"envelopefs v1 target", ident, plain))


def overflow_link(key, ident):
    return "@" + b64(ident + mac(expand(key, b"envelopefs v1 overflow link"), ident)[:16])


def object_xattr_key(volume_xattr_key, object_id):
    return expand(extract(object_id, volume_xattr_key), b"envelopefs v1 xattr object")


def xattr(key, plain_name, value, nonce):
    namespace = plain_name[:plain_name.index(b".") + 1]
    prf = mac(expand(key, b"envelopefs v1 xattr name"), plain_name)[:16]
    backing = namespace + b"e." + b64(prf).encode()
    plain = bytes([len(plain_name)]) + plain_name + value
    ct, tag = gcm(expand(key, b"envelopefs v1 xattr value"), nonce, backing, plain)
    return backing.decode(), nonce + tag + ct


# The volume file ----------------------------------------------------------------------------------------------------

def volume_file(config_key, c):
    def slots(key, items):
        lines = [f'{key} = [']
        for s in items:
            lines.append(f'  {{ provider = "{s["provider"]}", key_ref = "{s["key_ref"]}", '
                         f'commitment = "{s["commitment"].hex()}", blob = "{b64(s["blob"])}" }},')
        return lines + [']']
    lines = [
        "# envelopefs volume. Written by envelopefs; the last line authenticates every byte above it.",
        "# Losing this file loses names, not content: each file carries its own wrapped key.",
        "version = 1",
        f'volume_id = "{c["volume_id"].hex()}"',
        f'created = {c["created"]}',
        f'plaintext_names = {"true" if c["plaintext_names"] else "false"}',
        f'header_pages = {c["header_pages"]}',
        f'key_mode = "{c["key_mode"]}"',
        f'branch_max_age = {c["branch_max_age"]}',
        f'branch_max_files = {c["branch_max_files"]}',
        "cmks = [",
        *[f'  "{uri}",' for uri in c["cmks"]],
        "]",
        *slots("volume_key", c["volume_key"]),
    ]
    if c["branch"]:
        lines += [f'branch_id = "{c["branch"]["id"].hex()}"', f'branch_created = {c["branch"]["created"]}',
                  *slots("branch_key", c["branch"]["slots"])]
    slot = lambda s: (f'{{ provider = "{s["provider"]}", key_ref = "{s["key_ref"]}", '
                      f'commitment = "{s["commitment"].hex()}", blob = "{b64(s["blob"])}" }}')
    if c.get("directory_cmks"):
        lines += ["directory_cmks = [",
                  *[f'  {{ provider = "{d["provider"]}", key_ref = "{d["key_ref"]}", uri = "{d["uri"]}" }},'
                    for d in c["directory_cmks"]], "]"]
    if c.get("directory_branches"):
        lines += ["directory_branches = [",
                  *[f'  {{ id = "{b["id"].hex()}", created = {b["created"]}, '
                    f'key = [{", ".join(map(slot, b["slots"]))}] }},' for b in c["directory_branches"]], "]"]
    text = "\n".join(lines) + "\n"
    return text + f'mac = "{b64(mac(config_key, text.encode()))}"\n'


# Vectors ------------------------------------------------------------------------------------------------------------

VOLUME_ID, FILE_ID = pattern(16, 0x10), pattern(32, 0x20)
DEK, BRANCH_KEY, VOLUME_KEY = pattern(32, 0x30), pattern(32, 0x40), pattern(32, 0x50)
BRANCH_ID, DIR_ID, PARENT = pattern(16, 0x60), pattern(16, 0x70), pattern(16, 0x80)
OBJECT_ID = pattern(16, 0x90)
PRK = file_prk(FILE_ID, DEK)
KEYS = volume_keys(VOLUME_ID, VOLUME_KEY)
SALT, NONCE = pattern(4, 0xA0), pattern(12, 0xB0)


def hexed(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: hexed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hexed(v) for v in value]
    return value


def keys_vectors():
    block_key = expand(PRK, b"envelopefs v1 file blk" + SALT)
    ct, tag = gcm(block_key, NONCE, b"", b"block key")
    return {
        "volume_id": VOLUME_ID, "volume_key": VOLUME_KEY,
        "volume": {k: v for k, v in KEYS.items()},
        "file_id": FILE_ID, "dek": DEK,
        "file_commitment": file_commitment(PRK),
        "file_header_mac_of_abc": mac(expand(PRK, b"envelopefs v1 file hdr"), b"abc"),
        "file_xattr_key": expand(PRK, b"envelopefs v1 file xattr"),
        "block_key": {"salt": SALT, "nonce": NONCE, "plain": b"block key", "ciphertext": ct, "tag": tag},
        "key_commitment": {"key": BRANCH_KEY, "commitment": key_commitment(BRANCH_KEY)},
    }


def block_vectors():
    out = []
    for index, length, salt in [(0, 4048, SALT), (0, 1, SALT), (1, 100, SALT), (2**40 + 5, 4047, b"\xff" * 4)]:
        nonce = pattern(12, index % 251)
        plain = pattern(length, index % 256)
        out.append({"index": index, "key_salt": salt, "nonce": nonce, "valid_len": length,
                    "plain_seed": index % 256, "page": block(PRK, salt, nonce, index, plain)})
    return {"file_id": FILE_ID, "dek": DEK, "comment": "byte i of the plaintext is (7·i + plain_seed) mod 256",
            "blocks": out}


def header_vectors():
    wrap_salt = pattern(16, 0xC0)
    wrapped = wrap_dek(BRANCH_KEY, BRANCH_ID, VOLUME_ID, FILE_ID, DEK, wrap_salt, NONCE)
    slot = lambda n, key: {"provider": "keyfile", "key_ref": f"cmk-{n}", "blob": pattern(60 + n, n),
                           "commitment": key_commitment(key)}
    base = {"pages": 1, "flags": 0, "generation": 1, "size_floor": 0, "sealed_size": 0, "volume_id": VOLUME_ID,
            "file_id": FILE_ID, "commitment": file_commitment(PRK), "previous_commitment": bytes(32),
            "wrapped_dek": {"branch_id": BRANCH_ID, "salt": wrap_salt, "wrapped": wrapped},
            "slots": [slot(1, BRANCH_KEY)]}
    cases = [
        ("first header of a file", base, True),
        ("floor, holes, two CMKs", {**base, "generation": 2, "flags": 1, "size_floor": 2**40 + 3,
                                    "slots": [slot(1, BRANCH_KEY), slot(2, BRANCH_KEY)]}, True),
        ("per-file mode", {**base, "wrapped_dek": None, "slots": [slot(1, DEK)]}, True),
        ("sealed, rekeying", {**base, "flags": 6, "sealed_size": 12345, "previous_commitment": pattern(32, 9)}, True),
        ("origin unknown", base, False),
        ("two pages, a large blob", {**base, "pages": 2, "slots": [{**slot(1, BRANCH_KEY), "provider": "awskms",
            "key_ref": "arn:aws:kms:eu-west-1:111122223333:key/a", "blob": pattern(6144, 1)}]}, True),
    ]
    good = [{"name": n, "header": h, "with_origin": o, "slot": header(h, PRK, KEYS["origin"] if o else None)}
            for n, h, o in cases]
    first = good[0]["slot"]

    def changed(at, value):
        return fix_crc(first[:at] + bytes([value]) + first[at + 1:])

    later = tlv(0x4123, b"authenticated, unknown")
    bad = [
        ("all zero", bytes(PAGE), "empty"),
        ("torn", first[:1000] + bytes(PAGE - 1000), "checksum"),
        ("foreign", b"\x7fELF" + first[4:], "magic"),
        ("version 2", changed(8, 2), "version"),
        ("suite 2", changed(10, 2), "suite"),
        ("other number of pages", changed(12, 2), "malformed"),
        ("unknown flag", changed(16, 8), "malformed"),
        ("reserved bytes of the fixed part", changed(20, 1), "malformed"),
        ("reserved bytes before the TLVs", changed(191, 1), "malformed"),
        ("reserved bytes of the trailer", changed(PAGE - 8, 1), "malformed"),
        ("generation changed", changed(24, 9), "auth"),
        ("floor changed", changed(32, 9), "auth"),
        ("floor impossible", changed(39, 0xFF), "malformed"),
        ("wrapped DEK changed", changed(192 + 4 + 32, first[192 + 4 + 32] ^ 1), "auth"),
        ("target commitment changed", changed(192 + 96 + 4, first[192 + 96 + 4] ^ 1), "auth"),
        ("HMAC changed", changed(PAGE - 72, first[PAGE - 72] ^ 1), "auth"),
        ("origin tag changed", changed(PAGE - 40, first[PAGE - 40] ^ 1), "origin"),
        ("origin tag missing", good[4]["slot"], "origin"),
        ("unknown critical TLV", header(base, PRK, KEYS["origin"], tlv(0x8123, b"x")), "malformed"),
        ("two wrapped DEKs", header(base, PRK, KEYS["origin"], *[tlv(0xC001, bytes(92))] * 2), "malformed"),
        ("TLV beyond the area", changed(194, 0xFF)[:195] + b"\xff" + first[196:], "malformed"),
    ]
    bad[-1] = (bad[-1][0], fix_crc(bad[-1][1]), bad[-1][2])
    accepted = [
        ("unknown TLV, authenticated", header(base, PRK, KEYS["origin"], later, later)),
        ("unknown TLV, not authenticated", header(base, PRK, KEYS["origin"], tlv(0x0123, b"ignored"))),
        ("blob replaced without a key", changed(192 + 96 + 4 + 32 + 1 + 8 + 7 + 8 + 5 + 8, 0xEE)),
    ]
    return {
        "volume_id": VOLUME_ID, "volume_key": VOLUME_KEY, "file_id": FILE_ID, "dek": DEK, "branch_key": BRANCH_KEY,
        "dek_wrap": {"branch_id": BRANCH_ID, "salt": wrap_salt, "nonce": NONCE, "wrapped": wrapped},
        "headers": good,
        "rejected": [{"name": n, "slot": s, "error": e} for n, s, e in bad],
        "accepted_as_first": [{"name": n, "slot": s} for n, s in accepted],
    }


def name_vectors():
    plains = [b"a", b".hidden", b"report 2024.pdf", "żółw\n".encode(), bytes([1, 255, 254]), b"sixteen bytes!!!",
              b"n" * 175, b"n" * 176, b"n" * 255, b".envelopefs.dir"]
    return {"volume_id": VOLUME_ID, "volume_key": VOLUME_KEY, "dir_id": DIR_ID,
            "names": [{"plain": p, **name(KEYS["names"], DIR_ID, p)} for p in plains]}


def dir_vectors():
    return {"volume_id": VOLUME_ID, "volume_key": VOLUME_KEY,
            "records": [{"id": i, "parent": p, "target": dir_record(KEYS["dir"], i, p)}
                        for i, p in [(DIR_ID, bytes(16)), (PARENT, DIR_ID)]],
            "records_with_keys": [
                {"id": DIR_ID, "parent": PARENT, "keys": [{"provider": n, "key_ref": k} for n, k in keys],
                 "target": dir_record(KEYS["dir"], DIR_ID, PARENT, keys)} for keys in keys_of_directories()],
            "rejected": rejected_dir_records()}


def keys_of_directories():
    arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    return [[("keyfile", "team-a")], [("awskms", arn), ("hashivault", "transit/żółw"), ("keyfile", "x")],
            [("keyfile", "k" * 713)]]


def rejected_dir_records():
    """Each under a good MAC, but for the last two: the list taken off a record, and put on one."""
    sealed = lambda said: b64(said + mac(KEYS["dir"], said)[:12])
    lists = {"no provider": b"\0\1\0k", "cut": b"\7keyfile\5\0team", "rest": b"\7keyfile\1\0kk", "no key": b"\7keyfile\0\0",
             "upper case": b"\7Keyfile\1\0k", "control character": b"\7keyfile\1\0\n", "not UTF-8": b"\7keyfile\1\0\xff",
             "twice": b"\7keyfile\1\0k" * 2, "too long": b"\7keyfile\xca\2" + b"k" * 714}
    out = [{"name": n, "target": sealed(DIR_ID + PARENT + entries)} for n, entries in lists.items()]
    entries = b"\7keyfile\6\0team-a"
    short, long = DIR_ID + PARENT, DIR_ID + PARENT + entries
    return out + [{"name": "list removed", "target": b64(short + mac(KEYS["dir"], long)[:12])},
                  {"name": "list added", "target": b64(long + mac(KEYS["dir"], short)[:12])}]


def target_vectors():
    plains = [b"x", b"../lib/libc.so.6", b"/absolute/path", b"t" * 735, b"t" * 736, b"t" * 4095]
    return {"volume_id": VOLUME_ID, "volume_key": VOLUME_KEY,
            "targets": [{"id": pattern(16, i), "plain": p, "sealed": target(KEYS["targets"], pattern(16, i), p)}
                        for i, p in enumerate(plains)],
            "overflow": {"id": OBJECT_ID, "link": overflow_link(KEYS["targets"], OBJECT_ID)}}


def xattr_vectors():
    file_key = expand(PRK, b"envelopefs v1 file xattr")
    object_key = object_xattr_key(KEYS["xattrs"], OBJECT_ID)
    attributes = [(b"user.comment", b"hello"), (b"user.empty", b""), (b"trusted.x.y", pattern(300, 3)),
                  (b"user." + b"l" * 250, b"long name")]
    out = {"volume_id": VOLUME_ID, "volume_key": VOLUME_KEY, "file_id": FILE_ID, "dek": DEK, "object_id": OBJECT_ID}
    for kind, key in [("file", file_key), ("object", object_key)]:
        out[kind] = []
        for n, v in attributes:
            backing, sealed = xattr(key, n, v, NONCE)
            out[kind].append({"plain_name": n, "value": v, "nonce": NONCE, "backing_name": backing, "sealed": sealed})
    return out


def size_vectors():
    sizes, lengths = [], []
    for pages in [1, 2, 64]:
        start = 2 * pages * PAGE
        room = 2**63 - 1 - start
        largest = (room // PAGE - 1) * PLAIN + min(room % PAGE, PLAIN)
        for size in [1, 4047, 4048, 4049, 8096, 8097, 1 << 20, 1 << 40, largest]:
            n = -(-size // PLAIN)
            sizes.append({"header_pages": pages, "size": size, "blocks": n,
                          "quiet": start + PAGE * n + size - (n - 1) * PLAIN, "growing": start + PAGE * n})
        for length, kind, value in [
            (0, "absent", 0), (1, "empty", 0), (start, "empty", 0), (start + 1, "bad", 0), (start + 4048, "bad", 0),
            (start + 4095, "bad", 0), (start + 4096, "growing", 1), (start + 4097, "quiet", 1),
            (start + 8144, "quiet", 4048), (start + 8145, "bad", 4048), (start + 8191, "bad", 4048),
            (start + 8192, "growing", 2), (start + 8193, "quiet", 4049), (2**64 - 1, "bad", None),
        ]:
            if value is None:
                value = (length - start) // PAGE * PLAIN
            lengths.append({"header_pages": pages, "length": length, "is": kind, "value": value})
    return {"comment": "value: the size (quiet), the blocks (growing), the size that stat shows (bad)",
            "sizes": sizes, "lengths": lengths}


def volume_vectors():
    slot = lambda n: {"provider": "keyfile", "key_ref": f"cmk-{n}", "blob": pattern(65, n),
                      "commitment": key_commitment(VOLUME_KEY)}
    base = {"volume_id": VOLUME_ID, "created": 1800000000, "plaintext_names": False, "header_pages": 1,
            "key_mode": "branch", "branch_max_age": 2592000, "branch_max_files": 1048576,
            "cmks": ["keyfile:///etc/envelopefs/cmk.json"], "volume_key": [slot(1)],
            "branch": {"id": BRANCH_ID, "created": 1800000001,
                       "slots": [{**slot(2), "commitment": key_commitment(BRANCH_KEY)}]}}
    cases = [base, {**base, "key_mode": "per-file", "branch": None, "plaintext_names": True, "header_pages": 2,
                    "cmks": ["keyfile:a.json", "keyfile:b.json?key=x"], "volume_key": [slot(1), slot(2)]},
             {**base, "directory_cmks": [
                 {"provider": "keyfile", "key_ref": "cmk-3", "uri": "keyfile:///etc/envelopefs/a.json?key=cmk-3"},
                 {"provider": "keyfile", "key_ref": "cmk-4", "uri": "keyfile:///etc/envelopefs/b.json?key=cmk-4"}],
              "directory_branches": [{"id": DIR_ID, "created": 1800000002, "slots": [slot(3)]},
                                     {"id": PARENT, "created": 1800000003, "slots": [slot(3), slot(4)]}]}]
    return {"volume_key": VOLUME_KEY, "volumes": [{"config": c, "text": volume_file(KEYS["config"], c)} for c in cases]}


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    for file, make in [("keys", keys_vectors), ("block", block_vectors), ("header", header_vectors),
                       ("name", name_vectors), ("dir_id", dir_vectors), ("target", target_vectors),
                       ("xattr", xattr_vectors), ("size", size_vectors), ("volume", volume_vectors)]:
        text = json.dumps(hexed(make()), indent=1, ensure_ascii=True) + "\n"
        (here / f"{file}.json").write_text(text)
