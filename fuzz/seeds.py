#!/usr/bin/env python3
"""Writes the first inputs of every fuzz target into fuzz/corpus: from the golden vectors, the samples, and by hand."""

import base64
import hashlib
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"


def vectors(name):
    return json.loads((TESTS / "vectors" / f"{name}.json").read_text())


def put(target, *inputs):
    directory = HERE / "corpus" / target
    directory.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        data = data.encode() if isinstance(data, str) else data
        (directory / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


def halves(a, b):
    a, b = (x.encode() if isinstance(x, str) else x for x in (a, b))
    return struct.pack("<H", len(a)) + a + b


def tlv(kind, body):
    return struct.pack("<HH", kind, len(body)) + body


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def slot(target, provider="keyfile", key="k", blob=b"blob"):
    return tlv(0x8002, bytes(32) + bytes([target]) + text(provider) + text(key) + text(blob))


for header in vectors("header")["headers"]:
    raw = bytes.fromhex(header["slot"])
    pages = len(raw) // 4096 - 1
    for how in (0, 1, 2):
        put("header", bytes([pages << 4 | how]) + raw)
    put("tlvs", raw[192:].rstrip(b"\0")[:2000])
for header in vectors("header")["rejected"]:
    if "slot" in header and len(header["slot"]) == 8192:
        put("header", b"\0" + bytes.fromhex(header["slot"]))
put("tlvs", b"", slot(0), slot(0) + slot(0, "awskms", "arn:aws:kms:eu-west-1:1:key/a"), tlv(0xC001, bytes(92)) + slot(1),
    tlv(0x0001, b"unknown"), tlv(0x4001, b"authenticated"), tlv(0x8009, b"critical"), slot(1), b"\x02\x80\xff\xff",
    tlv(0xC001, bytes(92)) * 2, slot(0, "Keyfile"), slot(0, key="\n"))

for block in vectors("block")["blocks"]:
    page = bytes.fromhex(block["page"])
    for how in (0, 1):
        put("block", bytes([how]) + struct.pack("<Q", block["index"]) + page)
for case in vectors("size")["lengths"]:
    put("length", bytes([case["header_pages"] - 1]) + struct.pack("<Q", int(case["length"]) & (2**64 - 1)))

for volume in vectors("volume")["volumes"]:
    for how in b"\0", b"\1":
        put("volume", how + volume["text"].encode())
put("volume", b"\0" + (TESTS / "samples/v1/volume/envelopefs.toml").read_bytes(), b"\1version = 1\n", b"\1version = 2\n",
    b"\1" + b"a = " + b"[" * 100)

for name in vectors("name")["names"]:
    put("name", b"\0" + halves(name["entry"], name.get("companion_target", "")), b"\0" + bytes.fromhex(name["plain"]))
put("name", b"\1" + halves(".envelopefs.dir", ""), b"\1plain", b"\0" + halves(".envelopefs.tmp.AAAA", ""), b"\0..", b"\0a/b")

ids = vectors("dir_id")
for record in ids["records"] + ids["records_with_keys"] + ids["rejected"]:
    target = record["target"]
    raw = base64.urlsafe_b64decode(target + "=" * (-len(target) % 4))
    put("dir_id", b"\0" + target.encode(), b"\1" + raw[:-12])

targets = vectors("target")
for target in targets["targets"]:
    put("symlink", b"\0" + target["sealed"].encode(), b"\1" + bytes.fromhex(target["plain"]))
put("symlink", b"\0" + targets["overflow"]["link"].encode(), b"\0@", b"\0")

for attribute in vectors("xattr")["object"] + vectors("xattr")["file"]:
    put("xattr", b"\0" + halves(attribute["backing_name"], bytes.fromhex(attribute["sealed"])),
        b"\1" + halves(bytes.fromhex(attribute["plain_name"]), bytes.fromhex(attribute["value"])))
put("xattr", b"\0" + halves("user." + "n" * 251, "v"))

put("known_volumes", 'version = 1\n', f'''version = 1
[[volume]]
id = "{"0a" * 16}"
cmks = ["keyfile:///etc/envelopefs/cmk.json", "awskms:///alias/a?region=eu-west-1"]
directory_cmks = ["keyfile:///b"]
commitment = "{"0b" * 32}"
path = "/srv/data"
''', "version = 2\n", "volume = 7\n", "\xff")

sample = (TESTS / "samples/v1/cmk.json").read_text()
key = '{"version":1,"key":"' + "A" * 43 + '"}'
sealed = ('{"version":2,"sealed":{"kdf":"argon2id","memory_kib":65536,"passes":3,"lanes":1,"salt":"' + "A" * 22
          + '","wrapped":"' + "A" * 80 + '"}}')


def keyfile(versions, state="enabled", more=""):
    return ('{"format":"envelopefs-keyfile","version":1,"keys":[{"id":"a-1","created":"2027-01-15T08:00:00Z","description":"d",'
            f'"state":"{state}",{more}"current_version":1,"versions":[{versions}]' + "}]}")


put("keyfile", sample, keyfile(key), keyfile(f"{key},{sealed}", "disabled"),
    keyfile(key, "pending_deletion", '"deletion_date":"2027-02-15T08:00:00Z",'), keyfile(""), "{}", "[" * 200,
    '{"format":"x","version":1}')

put("cmk_uri", "keyfile:///etc/envelopefs/cmk.json?key=a-1", "keyfile:relative/path%20x?optional=true",
    "awskms:///arn:aws:kms:eu-west-1:111122223333:key/0a1b?region=eu-west-1", "awskms:///alias/a?region=us-east-1&fips=true",
    "awskms://localhost:4566/0a1b?algorithm=rsa&profile=p", "awskms:///mrk-0a?endpoint=http://127.0.0.1:4566",
    "hashivault://transit/key?address=https://vault.example:8200&namespace=a/b&label=l",
    "hashivault://a%2Fb/key?auth=approle&auth_mount=approle&role_id=r&secret_id_file=/s",
    "hashivault://transit/k?auth=kubernetes&role=r&jwt_file=/j&ca=/ca.pem&tls_server_name=v",
    "hashivault://transit/k?client_cert=/c&client_key=/k&token_file=/t", "hashivault://transit/k?auth=none",
    "pkcs11:token=t;object=o;id=%01%ff?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/pin",
    "pkcs11:serial=1;manufacturer=m;model=x;object=o?module-name=softhsm2", "pkcs11:token=t;object=o?pin-value=1234",
    "k8skms:///run/kms/plugin.sock?name=n", "k8skms:///a#b", "gcpkms://x", "keyfile:///%", "keyfile:///a?key=%00")

put("control", '{"version":1,"request":"status"}', '{"version":1,"request":"forget-keys","force":true}',
    '{"version":1,"request":"directory-cmks","inode":7}', '{"version":1,"request":"unset-directory-cmks","inode":7}',
    '{"version":1,"request":"set-directory-cmks","inode":7,"cmks":["keyfile:///k"],"passphrase_file":"/p"}',
    '{"version":2,"request":"status"}', '{"version":1,"ok":7}', '{"version":1,"error":{"kind":"busy","message":"x"}}',
    "[" * 200)

put("options", "ro,allow_other,commit=2m,cmk=keyfile:///a\\,b,x-systemd.automount,nofail", "kms_deadline=500ms,kms_revalidate=1m",
    "kms_max_stale=1h,revoke=primary,wait_for_kms=90", "metadata_timeout=0.5,suid,dev,noexec,noatime,sync,dirsync",
    "header_pages=2", "strict_pages", "unknown", "commit=1e400", ",,\\\\,")
put("duration", "5", "0.5", "1h 30m", "30d", "500ms", "1.2.3", "99999999999999999999999", "1y 2months 3weeks 4us 5ns", "", "1h-1h")
put("mountinfo", "\0" + "36 35 0:40 / /mnt\\040a rw,nosuid shared:1 - fuse.envelopefs /srv/c\\134d rw,user_id=1000,group_id=0",
    "\0" + "1 0 8:1 / / rw - ext4 /dev/sda1 rw", "\0" + "1 0 8 / / rw -", "\0\\777")

ok = json.dumps
key32 = base64.b64encode(bytes(32)).decode()
vault = [(0, {"data": {"ciphertext": "vault:v1:AAAA", "plaintext": key32}}),
         (0, {"data": {"type": "aes256-gcm96", "derived": True, "latest_version": 2, "min_decryption_version": 1, "exportable": True,
                       "keys": {"1": 1700000000, "2": 1700000001}}}),
         (0, {"data": {"type": "rsa-2048", "derived": False, "soft_deleted": True, "keys": {}}}),
         (3, {"errors": ["cipher: message authentication failed"]}), (3, {"errors": ["encryption key not found"]}),
         (3, {"errors": ["ciphertext or signature version is disallowed by policy (too old)"]}),
         (4, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}), (5, {"errors": []}), (5, {"request_id": "x"}),
         (5, {"errors": ["no handler for route \"transit/decrypt/k\""]}), (10, {"errors": ["Vault is sealed"]}), (8, {}), (2, {})]
aws = [(0, {"CiphertextBlob": key32, "Plaintext": key32, "KeyId": "arn:aws:kms:us-east-1:111122223333:key/0a"}),
       (0, {"KeyMetadata": {"Arn": "arn:aws:kms:us-east-1:111122223333:key/0a", "KeyId": "0a", "KeyState": "Enabled",
                            "KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT", "CreationDate": 1.7e9, "Description": "d"}}),
       (0, {"KeyMetadata": {"Arn": "a", "KeyId": "0a", "KeyState": "Unavailable"}}), (0, {}), (2, {})]
aws += [(3, {"__type": code, "message": "m\n"}) for code in (
    "AccessDeniedException", "DisabledException", "KMSInvalidStateException", "NotFoundException", "InvalidCiphertextException",
    "ThrottlingException", "ExpiredTokenException", "InvalidSignatureException", "ValidationException", "UnknownOperationException")]
for use in range(5):
    for target, answers in ("vault_answer", vault), ("aws_answer", aws):
        for status, body in answers:
            put(target, bytes([use << 1 | 1, status]) + ok(body).encode())
raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
for target in "vault_answer", "aws_answer":
    put(target, b"\0" + raw, b"\0", b"\0HTTP/1.1 100 Continue\r\n\r\n", b"\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"\0HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:1/v1/transit/decrypt/k\r\nContent-Length: 0\r\n\r\n",
        b"\0HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{", b"\0HTTP/1.1 400 x\r\nContent-Length: 53\r\n\r\n"
        b"<Error><Code>AccessDenied</Code><Message>m</Message></Error>"[:94])
put("vault_blob", "vault:v1:AAAA", "vault:v123456789:AAAAAA==", "vault:v0:AAAA", "vault:v1:AAA", "vault:v1:")


def field(number, value):
    value = value.encode() if isinstance(value, str) else value
    size, out = len(value), b""
    while size > 0x7F:
        out, size = out + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + out + bytes([size]) + value


annotation = field(3, field(1, "a.example") + field(2, b"\1\2"))
put("k8s_answer", b"\0" + field(1, bytes(40)) + field(2, "kek/1") + annotation, b"\0" + field(1, "v2") + field(2, "ok") + field(3, "k"),
    b"\0" + field(1, bytes(32)), b"\1\7permission denied", b"\1\2googleapi: Error 403: x", b"\1\x0eplugin down", b"\0" + field(1, b""))
part = lambda b: struct.pack("<H", len(b)) + b
seed = b"\1" + part(bytes(40)) + part(b"kek/1") + struct.pack("<H", 1) + part(b"a.example") + part(b"\1\2")
put("k8s_blob", seed + bytes(60), b"\1" + part(b"c") + part(b"k") + b"\0\0" + bytes(60), bytes(60), seed)
put("pkcs11_blob", b"\1" + bytes(60), b"\2" + bytes(60), halves("label\x1b[2J", "token;x"), b"\xff\xff")

named = b"\1" + bytes(16 + 32)
put("kms_ciphertext", b"\0" + halves("", named + bytes(16 + 12 + 8 + 16)), b"\0" + halves("c", named + bytes(43)), b"\0",
    b"\0" + halves("", b"\2" + named[1:] + bytes(60)), b"\1" + halves("app=billing", "Lorem-ipsum-dolor-sit-amet."),
    b"\3" + halves("", ""), b"\1" + halves("\xc3=\0", bytes(4097)))


def der(tag, *parts):
    body = b"".join(parts)
    size = bytes([len(body)]) if len(body) < 128 else b"\x81" + bytes([len(body)])
    return bytes([tag]) + size + body


# A private key of the number 1: the public one is the curve's generator.
CURVES = {2: ("2a8648ce3d030107", 32), 3: ("2b81040022", 48), 4: ("2b81040023", 66), 5: ("2b8104000a", 32)}
for spec, (oid, size) in CURVES.items():
    algorithm = der(0x30, der(0x06, bytes.fromhex("2a8648ce3d0201")), der(0x06, bytes.fromhex(oid)))
    private = der(0x30, b"\2\1\1", der(0x04, bytes(size - 1) + b"\1"))
    pkcs8 = der(0x30, b"\2\1\0", algorithm, der(0x04, private))
    put("kms_import", bytes([spec << 2]) + pkcs8, bytes([spec << 2]) + pkcs8 + b"\0", bytes([spec << 2 | 2]) + pkcs8)
    point = der(0x03, b"\0\4" + bytes(2 * size))
    put("kms_peer", bytes([spec]) + der(0x30, algorithm, point), bytes([spec]) + halves("m", der(0x30, b"\2\1\1\2\1\1")))
generator = bytes.fromhex("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
                          "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")
algorithm = der(0x30, der(0x06, bytes.fromhex("2a8648ce3d0201")), der(0x06, bytes.fromhex("2a8648ce3d030107")))
put("kms_peer", b"\2" + der(0x30, algorithm, der(0x03, b"\0\4" + generator)), b"\2\4" + generator, b"\2\2" + generator[:32],
    b"\0" + bytes(256), b"\1" + bytes(256), b"\1" + halves("m", bytes(256)), b"\6" + halves("m", bytes(28)))
put("kms_import", b"\0" + bytes(32), b"\0" + bytes(31), bytes([6 << 2]) + bytes(28), bytes([8 << 2]) + bytes(64),
    bytes([1 << 2 | 1]) + b"\x20\0\1", bytes([1 << 2 | 1]) + b"\0", bytes([2 << 2 | 1]) + b"\x30\0\x80", b"\2" + bytes(32),
    b"\3" + bytes(256), b"\3" + bytes(296), b"\2")
statement = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::123456789012:user/ABC"}, "Action": "kms:*", "Resource": "*"}


def policy(*statements, version="2012-10-17"):
    return ok({"Version": version, "Id": "i", "Statement": list(statements)})


def conditions(**operators):
    return {**statement, "Principal": "*", "Condition": {name.replace("_", ":"): value for name, value in operators.items()}}


for text, value in (
    (policy(statement), "x"), (policy({**statement, "Principal": {"AWS": "123456789012", "Service": ["mount", "a.b"]}}), ""),
    (policy({**statement, "Effect": "Deny", "Principal": None}).replace('"Principal": null', '"NotPrincipal": {"AWS": ["123456789012"]}'), "x"),
    (policy({"Effect": "Allow", "Sid": "a", "NotAction": ["kms:De*", "s3:?et"], "NotResource": "arn:aws:kms:*:*:key/${aws:username}"}), "*"),
    (policy({"Effect": "Allow", "Action": "kms:*", "Resource": "arn:aws:kms:us-????-1:123456789012:key/*", "Condition": {}}, version="2008-10-17"), "a"),
    (policy(conditions(StringLike={"aws:username": ["a*", "${aws:SourceArn, 'x'}", "${*}"]}, Null={"aws:SourceVpc": True})), "abc"),
    (policy(conditions(ForAllValues_StringEqualsIgnoreCase={"kms:ResourceAliases": ["a", "b"]})), "a,B"),
    (policy(conditions(ForAnyValue_StringNotEqualsIfExists={"kms:EncryptionContext:x": 1}, Bool={"aws:SecureTransport": "true"})), "x"),
    (policy(conditions(NumericLessThanEquals={"kms:RotationPeriodInDays": "1e3"}, DateGreaterThan={"aws:CurrentTime": "2020-02-29T00:00:00.5+01:00"})), "12"),
    (policy(conditions(IpAddress={"aws:SourceIp": ["10.0.0.0/8", "2001:db8::/32"]}, NotIpAddress={"aws:SourceIp": "0.0.0.0/0"})), "10.1.2.3"),
    (policy(conditions(ArnLike={"aws:SourceArn": "arn:aws:iam::*:user/?"}, BinaryEquals={"kms:Typo": "YWJj"})), "arn:aws:iam::1:user/a"),
    ("[" * 300, ""), ('{"Statement":{"Effect":"Deny","Effect":"Allow"}}', ""), (policy(conditions(StringLike={"aws:username": "*a" * 40})), "a" * 300),
):
    put("kms_policy", halves(text, value))
scope = "AKIDEXAMPLE/20150830/us-east-1/kms/aws4_request"
authorization = f"authorization: AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date;x-amz-target, Signature=@"
signed = "\n".join(["/", "host: a", "x-amz-date: 20150830T123600Z", "x-amz-target: TrentService.Encrypt", authorization])
query = "&".join(["/?X-Amz-Algorithm=AWS4-HMAC-SHA256", f"X-Amz-Credential={scope.replace('/', '%2F')}", "X-Amz-Date=20150830T123600Z",
                  "X-Amz-Expires=60", "X-Amz-SignedHeaders=host", "a=b%20c", "X-Amz-Signature=@"])
for how in b"\0\1":
    for head in (signed, query + "\nhost: a", signed.replace("us-east-1", "eu-west-1"), signed.replace("/", "/?a=%zz", 1), "/\nhost: a", "",
                 signed.replace("x-amz-date: 20150830", "x-amz-date: 20150831"), signed + "\nx-amz-security-token: t",
                 signed.replace("Signature=", "Signature=" + "0" * 64 + ", X="), signed.replace("HMAC", "ECDSA"),
                 signed.replace("host;", "host;x-amz-content-sha256;") + "\nx-amz-content-sha256: UNSIGNED-PAYLOAD"):
        put("kms_signature", bytes([how]) + halves(head, "{}"))
put("kms_token", b"\0" + bytes(16) + b"1234abcd-12ab-34cd-56ef-1234567890ab/" + b"0" * 64 + bytes(32), b"\1AAAA", b"\0", b"\1")
