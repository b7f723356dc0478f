"""The other side of tests/kms_server/material.rs, on Python's `cryptography`: checks what the service made, makes what it shall
check. Reads one JSON object, prints one. Everything binary is base64."""

import base64
import hashlib
import hmac
import json
import struct
import sys
from os import urandom

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding, NoEncryption, PrivateFormat, PublicFormat, load_der_private_key, load_der_public_key)

HASHES = {"SHA_1": hashes.SHA1, "SHA_224": hashes.SHA224, "SHA_256": hashes.SHA256, "SHA_384": hashes.SHA384,
          "SHA_512": hashes.SHA512}
CURVES = {"ECC_NIST_P256": ec.SECP256R1, "ECC_NIST_P384": ec.SECP384R1, "ECC_NIST_P521": ec.SECP521R1,
          "ECC_SECG_P256K1": ec.SECP256K1}


def dec(text):
    return base64.b64decode(text, validate=True)


def enc(data):
    return base64.b64encode(data).decode()


def spki(public):
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pkcs8(private):
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def scheme(algorithm):
    """Padding (nothing for ECDSA) and hash."""
    digest = HASHES[algorithm[algorithm.index("SHA_"):]]()
    if "PSS" in algorithm:
        return padding.PSS(padding.MGF1(digest), digest.digest_size), digest
    return (padding.PKCS1v15() if "PKCS1" in algorithm else None), digest


def oaep(algorithm):
    digest = HASHES[algorithm[algorithm.index("SHA_"):]]
    return padding.OAEP(padding.MGF1(digest()), digest(), None)


def new_key(spec):
    """A private key of this kind, made here."""
    if spec.startswith("RSA"):
        return rsa.generate_private_key(65537, int(spec[4:]))
    return ec.generate_private_key(CURVES[spec]())


def raw_key(spec):
    return urandom(32 if spec == "SYMMETRIC_DEFAULT" else int(spec[5:]) // 8)


def check_pair(case):
    """The service's key pair: the private half gives the public one, and both are of the kind that was asked for."""
    private, public = load_der_private_key(dec(case["private"]), None), load_der_public_key(dec(case["public"]))
    assert spki(private.public_key()) == dec(case["public"])
    spec = case["spec"]
    if spec.startswith("RSA"):
        assert public.key_size == int(spec[4:]) and public.public_numbers().e == 65537
    else:
        assert isinstance(public.curve, CURVES[spec])
    return private, public


def check_signature(public, algorithm, message, signature):
    pad, digest = scheme(algorithm)
    if pad is None:
        public.verify(signature, message, ec.ECDSA(digest))
    else:
        public.verify(signature, message, pad, digest)


def make_signature(private, algorithm, message):
    pad, digest = scheme(algorithm)
    if pad is None:
        return private.sign(message, ec.ECDSA(digest))
    return private.sign(message, pad, digest)


def pair(case):
    private, public = check_pair(case)
    message = dec(case["message"])
    made = {"signatures": {}, "ciphertexts": {}}
    for algorithm, signatures in case["signatures"].items():
        for signature in signatures:
            check_signature(public, algorithm, message, dec(signature))
        made["signatures"][algorithm] = enc(make_signature(private, algorithm, message))
    for algorithm, ciphertext in case["ciphertexts"].items():
        assert private.decrypt(dec(ciphertext), oaep(algorithm)) == message
        made["ciphertexts"][algorithm] = enc(public.encrypt(message, oaep(algorithm)))
    if case["agrees"]:
        peer = new_key(case["spec"])
        made["peer"] = enc(spki(peer.public_key()))
        made["secret"] = enc(peer.exchange(ec.ECDH(), public))
    # A key made here, for the service to read.
    foreign = new_key(case["spec"])
    made["foreign"] = enc(pkcs8(foreign))
    made["foreign_public"] = enc(spki(foreign.public_key()))
    return made


def mac(case):
    name = "sha" + case["spec"][5:]
    return enc(hmac.new(dec(case["key"]), dec(case["message"]), name).digest())


def wrap(public, algorithm, material):
    if algorithm.startswith("RSAES"):
        return public.encrypt(material, oaep(algorithm))
    transport = urandom(32)
    return public.encrypt(transport, oaep(algorithm)) + aes_key_wrap_with_padding(transport, material)


def imports(case):
    """Materials of every kind that is asked for, wrapped in every way, and what tells them: a public key or a hash."""
    public = load_der_public_key(dec(case["public"]))
    made = []
    for spec, algorithm in case["ways"]:
        if spec.startswith(("RSA", "ECC")):
            key = new_key(spec)
            material, known = pkcs8(key), spki(key.public_key())
        else:
            material = raw_key(spec)
            known = hashlib.sha256(material).digest()
        made.append(enc(wrap(public, algorithm, material)))
        made.append(enc(known))
    return made


def context_bytes(context):
    pairs = sorted((name.encode(), value.encode()) for name, value in context.items())
    out = struct.pack("<I", len(pairs))
    for part in (part for pair in pairs for part in pair):
        out += struct.pack("<I", len(part)) + part
    return out


def symmetric(case):
    """The ciphertext format as its documentation has it."""
    key, blob = dec(case["key"]), dec(case["blob"])
    assert blob[:49] == b"\x01" + dec(case["key_id"]) + dec(case["material_id"])
    salt, nonce, rest = blob[49:65], blob[65:77], blob[77:]
    message_key = HKDFExpand(hashes.SHA256(), 32, b"envelopefs kms message key v1" + salt).derive(key)
    return enc(AESGCM(message_key).decrypt(nonce, rest, blob[:65] + context_bytes(case["context"])))


def material_id(case):
    info = dec(case["key_id"]) + case["spec"].encode()
    return enc(HKDF(hashes.SHA256(), 32, b"envelopefs kms material id v1", info).derive(dec(case["key"])))


request = json.load(sys.stdin)
answer = {
    "pairs": [pair(case) for case in request["pairs"]],
    "macs": [mac(case) for case in request["macs"]],
    "imports": [imports(case) for case in request["imports"]],
    "symmetric": [symmetric(case) for case in request["symmetric"]],
    "ids": [material_id(case) for case in request["ids"]],
}
json.dump(answer, sys.stdout)
