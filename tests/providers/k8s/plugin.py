"""A KMS v2 plugin for tests: plugin.py STUBS SOCKET SECRET CONTROL LOG

CONTROL is a JSON file read at every request: key_id (the key that encrypts), gone (key ids that are no more), mode (what to
do wrong), version, healthz. LOG gets one line per request: its method and uid.
"""
import hashlib, json, os, sys, threading
from concurrent import futures

stubs, socket, secret, control, log = sys.argv[1:]
sys.path.insert(0, stubs)

import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
import kms_pb2, kms_pb2_grpc

NONCE = "nonce.plugin.example"
writing = threading.Lock()
stumbled = False


def key(key_id):
    return AESGCM(hashlib.sha256((secret + key_id).encode()).digest())


def begin(method, request, context):
    with writing, open(log, "a") as out:
        out.write(f"{method} {getattr(request, 'uid', '-')}\n")
    with open(control) as text:
        wanted = json.load(text)
    mode = wanted.get("mode", "ok")
    if mode == "hang":
        threading.Event().wait(600)
    if mode.startswith("code:") and method != "Status":
        context.abort(getattr(grpc.StatusCode, mode.removeprefix("code:")), "as the test\nwishes")
    if mode.startswith("says:") and method != "Status":
        context.abort(grpc.StatusCode.UNKNOWN, mode.removeprefix("says:"))
    return wanted, mode


class Plugin(kms_pb2_grpc.KeyManagementServiceServicer):
    def Status(self, request, context):
        wanted, _ = begin("Status", request, context)
        return kms_pb2.StatusResponse(
            version=wanted.get("version", "v2"), healthz=wanted.get("healthz", "ok"), key_id=wanted["key_id"])

    def Encrypt(self, request, context):
        wanted, mode = begin("Encrypt", request, context)
        nonce = os.urandom(12)
        ciphertext = key(wanted["key_id"]).encrypt(nonce, request.plaintext, None)
        annotations = {NONCE: nonce}
        if mode == "empty":
            ciphertext = b""
        if mode == "long":
            annotations["long.plugin.example"] = bytes(8000)
        if mode == "endless":
            annotations["endless.plugin.example"] = bytes(1 << 20)
        return kms_pb2.EncryptResponse(ciphertext=ciphertext, key_id=wanted["key_id"], annotations=annotations)

    def Decrypt(self, request, context):
        wanted, mode = begin("Decrypt", request, context)
        global stumbled
        if mode == "fails-once" and not stumbled:
            stumbled = True
            context.abort(grpc.StatusCode.INTERNAL, "try again")
        if mode == "cannot-decrypt" or request.key_id in wanted.get("gone", []):
            context.abort(grpc.StatusCode.UNKNOWN, "failed to decrypt")
        if not request.key_id.startswith("kek/"):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"no right to {request.key_id}")
        if not request.uid:
            context.abort(grpc.StatusCode.UNKNOWN, "no uid")
        try:
            plain = key(request.key_id).decrypt(request.annotations[NONCE], request.ciphertext, None)
        except (InvalidTag, ValueError):
            context.abort(grpc.StatusCode.UNKNOWN, "failed to decrypt")
        return kms_pb2.DecryptResponse(plaintext=plain[:31] if mode == "short" else plain)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
kms_pb2_grpc.add_KeyManagementServiceServicer_to_server(Plugin(), server)
server.add_insecure_port(f"unix:{socket}")
server.start()
server.wait_for_termination()
