"""Requests that no client would send, to every operation of a running service: well formed and not, signed and not.

Standard input: {"endpoint", "region", "account", "data", "count", "seed", "users": {"root": [id, secret], "nobody": [id, secret]}}. Holds that
the service goes on, answers each in the protocol's words, takes no more memory than it may, and does nothing for a user without rights.
Prints how often each error code was answered.
"""

import base64
import collections
import http.client
import json
import pathlib
import random
import socket
import sys

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.session

IN = json.load(sys.stdin)
RANDOM = random.Random(IN["seed"])
HOST = IN["endpoint"].split("//")[1]
MODEL = botocore.session.get_session().get_service_model("kms")
ARN = f"arn:aws:kms:{IN['region']}:{IN['account']}"
MEMORY_MAX = 256 << 20
# Known to exist; grows.
KEYS, BLOBS, TOKENS, GRANTS = [], [], [], []
SLOW = {"RSA_2048", "RSA_3072", "RSA_4096"}
CODES = collections.Counter()


def memory():
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            command = (status.parent / "cmdline").read_bytes().split(b"\0")
            if b"serve" in command and IN["data"].encode() in command:
                return int(next(line for line in status.read_text().splitlines() if line.startswith("VmRSS")).split()[1]) * 1024
        except (OSError, StopIteration):
            continue
    raise AssertionError("the service does not run")


def post(body, headers, path="/", method="POST"):
    connection = http.client.HTTPConnection(HOST, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def signed(who, operation, body):
    request = botocore.awsrequest.AWSRequest("POST", IN["endpoint"] + "/", data=body, headers={
        "X-Amz-Target": f"TrentService.{operation}", "Content-Type": "application/x-amz-json-1.1", "Host": HOST})
    botocore.auth.SigV4Auth(botocore.credentials.Credentials(*IN["users"][who]), "kms", IN["region"]).add_auth(request)
    return dict(request.headers.items())


def call(who, operation, body):
    """Status and answer; any answer is one of the protocol's."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = post(body, signed(who, operation, body))
    assert status in (200, 400, 413), (operation, status, body[:300], answer[:300])
    said = json.loads(answer) if answer else {}
    CODES[said.get("__type", "ok") if status != 200 else "ok"] += 1
    assert status == 200 or said["__type"] != "KMSInternalException", (operation, body[:300])
    return status, said


def wild():
    return RANDOM.choice([None, True, -1, 0, 2**63, 1e308, "", "a", "\0", "\u202e", "x" * 10000, "alias/", "alias/aws/x", ARN, f"{ARN}:key/", [],
                          {}, [[]], {"a": {}}, "é" * 300, "../../x", "%s%n", "' OR 1=1", "AAAA", [None], {"": ""}])


def text(name, shape):
    key = RANDOM.choice(KEYS) if KEYS else "none"
    by_name = {
        "KeyId": [key, f"{ARN}:key/{key}", "alias/fuzz", f"{ARN}:alias/fuzz", "alias/none", "1234abcd-12ab-34cd-56ef-1234567890ab"],
        "TargetKeyId": [key, f"{ARN}:key/{key}"], "SourceKeyId": [key], "DestinationKeyId": [key, "alias/fuzz"],
        "AliasName": ["alias/fuzz", f"alias/f{RANDOM.randrange(9)}", "alias/aws/envelopefs"],
        "PolicyName": ["default", "other"], "GrantId": GRANTS[-9:] or ["0" * 64], "GrantTokenType": TOKENS[-9:] or ["AAAA"],
        "GranteePrincipal": [f"arn:aws:iam::{IN['account']}:user/nobody-else", f"arn:aws:iam::{IN['account']}:root"],
        "RetiringPrincipal": [f"arn:aws:iam::{IN['account']}:root"], "Marker": ["x", "AAAA", key],
        "Policy": ["{}", json.dumps({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": {"AWS": IN["account"]}, "Action": "kms:*",
                                                                            "Resource": "*"}})],
    }
    if name in by_name:
        return RANDOM.choice(by_name[name])
    if shape.enum:
        return RANDOM.choice([value for value in shape.enum if value not in SLOW] or ["x"])
    return RANDOM.choice(["a", "Team", "b" * 50])


def value(name, shape, depth=0):
    if RANDOM.random() < 0.06:
        return wild()
    kind = shape.type_name
    if kind == "structure":
        required = set(shape.required_members)
        return {member: value(member, inner, depth + 1) for member, inner in shape.members.items()
                if member not in ("Recipient", "DryRun") and RANDOM.random() < (0.97 if member in required else 0.3)}
    if kind == "list":
        return [value(shape.member.name, shape.member, depth + 1) for _ in range(RANDOM.choice([0, 1, 1, 2, 12]))]
    if kind == "map":
        return {RANDOM.choice(["App", "app", "b", "c"]): value("", shape.value, depth + 1) for _ in range(RANDOM.randrange(4))}
    if kind == "blob":
        own = BLOBS[-20:] + [base64.b64encode(RANDOM.randbytes(n)).decode() for n in (0, 1, 16, 32, 300, 4096, 4097, 7000)] + ["!", "A"]
        blob = RANDOM.choice(own)
        if RANDOM.random() < 0.2 and len(blob) > 8:
            at = RANDOM.randrange(len(blob) - 4)
            blob = blob[:at] + "B" + blob[at + 1:]
        return blob
    if kind in ("integer", "long"):
        return RANDOM.choice([0, 1, 7, 30, 32, 64, 365, 1000, 1001, 4096, -1, 2**31])
    if kind == "boolean":
        return RANDOM.random() < 0.5
    if kind == "timestamp":
        return RANDOM.choice([0, 1, 4102444800, 1.5e9, -5])
    return text(name, shape)


def learn(said):
    if not isinstance(said, dict):
        return
    if "KeyMetadata" in said:
        KEYS.append(said["KeyMetadata"]["KeyId"])
    BLOBS.extend(said[name] for name in ("CiphertextBlob", "Signature", "Mac", "PublicKey") if said.get(name))
    if "GrantId" in said:
        GRANTS.append(said["GrantId"]), TOKENS.append(said["GrantToken"])


def mangled(body):
    body = bytearray(body)
    for _ in range(RANDOM.randrange(1, 4)):
        at = RANDOM.randrange(len(body) + 1)
        how = RANDOM.randrange(4)
        if how == 0:
            body[at:at + 1] = bytes([RANDOM.randrange(256)])
        elif how == 1:
            del body[at:]
        elif how == 2:
            body[at:at] = RANDOM.choice([b"{", b"[" * 500, b"\xff\xfe", b'"a":1,', b"\0", b"1e999"])
        else:
            body += body[:at]
    return bytes(body[:100_000])


def raw():
    """Bytes that are no HTTP, or hardly."""
    line = f"POST / HTTP/1.1\r\nHost: {HOST}\r\n".encode()
    data = RANDOM.choice([
        RANDOM.randbytes(200), b"\r\n" * 50, b"GET / HTTP/9.9\r\n\r\n", line + b"Content-Length: 99999999999999\r\n\r\n", line + b"X: " + b"y" * 200_000,
        line + b"Content-Length: -1\r\n\r\n", line + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n", line + b"A: b\r\n" * 5000 + b"\r\n",
        line + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        line + b"Authorization: AWS4-HMAC-SHA256 " + b"," * 5000 + b"\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        line + b"Authorization: AWS4-HMAC-SHA256 Credential=\xff/\xff, SignedHeaders=;;, Signature=\r\nContent-Length: 0\r\n\r\n",
    ])
    with socket.create_connection(HOST.split(":"), timeout=10) as connection:
        connection.settimeout(0.3)
        try:
            connection.sendall(data)
            connection.recv(4096)
        except OSError:
            pass


def main():
    for arguments in ({}, {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}, {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
                      {"Origin": "EXTERNAL"}):
        learn(call("root", "CreateKey", arguments)[1])
    call("root", "CreateAlias", {"AliasName": "alias/fuzz", "TargetKeyId": KEYS[0]})
    learn(call("root", "Encrypt", {"KeyId": KEYS[0], "Plaintext": "eA=="})[1])
    learn(call("root", "CreateGrant", {"KeyId": KEYS[0], "GranteePrincipal": f"arn:aws:iam::{IN['account']}:root", "Operations": ["Decrypt"]})[1])
    names = sorted(MODEL.operation_names)
    for number in range(IN["count"]):
        operation = RANDOM.choice(names)
        shape = MODEL.operation_model(operation).input_shape
        body = json.dumps(value("", shape) if shape else {}).encode()
        if RANDOM.random() < 0.15:
            body = mangled(body)
        # A user without rights gets nothing, whatever is asked, before and after the root has asked the same.
        status, said = call("nobody", operation, body)
        assert status != 200, (operation, body, said)
        status, said = call("root", operation, body)
        if status == 200:
            learn(said)
            status, said = call("nobody", operation, body)
            assert status != 200, (operation, body, said)
        if number % 10 == 0:
            raw()
            headers = signed("root", operation, body)
            headers[RANDOM.choice(list(headers))] = RANDOM.choice(["", "x", "é", "," * 300, "AWS4-HMAC-SHA256 Credential=/////"])
            try:
                status, _ = post(body, headers, RANDOM.choice(["/", "//", "/x", "/?X-Amz-Signature=", "/?X-Amz-Algorithm=AWS4-HMAC-SHA256&%zz"]),
                                 RANDOM.choice(["POST", "PUT", "DELETE", "OPTIONS"]))
                assert status != 200 and status < 500, (operation, status, headers)
            except (UnicodeEncodeError, ValueError, http.client.HTTPException):
                pass
    used = memory()
    assert used < MEMORY_MAX, f"{used >> 20} MiB"
    assert call("root", "ListKeys", {})[0] == 200
    print(json.dumps(CODES))


main()
