"""boto3 drives every operation of the API, and what goes wrong arrives as its own typed exception. Asserts; prints the names of
the operations it called, as JSON. Endpoint, region and the account root's credentials come from the environment."""

import datetime
import hashlib
import json
import sys
from os import urandom

import boto3
from botocore.config import Config
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding, NoEncryption, PrivateFormat, PublicFormat, load_der_private_key, load_der_public_key)

other_user = json.load(sys.stdin)["other_user_arn"]
kms = boto3.client("kms", config=Config(retries={"max_attempts": 1}))
called = set()
kms.meta.events.register("before-call.kms", lambda model, **_: called.add(model.name))
E = kms.exceptions
GENERIC = kms.meta.service_model


def fails(exception, call, **arguments):
    """The call raises exactly this, a class or a code without one; returns the message."""
    try:
        call(**arguments)
    except Exception as error:
        code = exception if isinstance(exception, str) else exception.__name__
        assert error.response["Error"]["Code"] == code, f"{error!r} instead of {code}"
        if not isinstance(exception, str):
            assert type(error) is exception, f"{type(error)} instead of {exception}"
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400, error.response
        assert error.response["ResponseMetadata"]["RequestId"], error.response
        return error.response["Error"].get("Message", "")
    raise AssertionError(f"{call} worked, {exception} was expected")


def key(**arguments):
    return kms.create_key(**arguments)["KeyMetadata"]


def pages(method, member, **arguments):
    return [item for page in kms.get_paginator(method).paginate(**arguments) for item in page[member]]


def spki(public):
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# Keys: made, described, listed.
made = key(Description="first", Tags=[{"TagKey": "team", "TagValue": "a"}])
key_id, arn = made["KeyId"], made["Arn"]
assert arn.endswith(":key/" + key_id) and made["Enabled"] and made["KeyState"] == "Enabled" and made["Origin"] == "AWS_KMS"
assert made["KeyManager"] == "CUSTOMER" and made["KeySpec"] == "SYMMETRIC_DEFAULT" and made["KeyUsage"] == "ENCRYPT_DECRYPT"
assert made["EncryptionAlgorithms"] == ["SYMMETRIC_DEFAULT"] and made["MultiRegion"] is False and len(made["CurrentKeyMaterialId"]) == 64
assert abs((datetime.datetime.now(datetime.timezone.utc) - made["CreationDate"]).total_seconds()) < 300
second = key()["KeyId"]
assert kms.describe_key(KeyId=arn)["KeyMetadata"]["Description"] == "first"
assert {key_id, second} <= {item["KeyId"] for item in pages("list_keys", "Keys", PaginationConfig={"PageSize": 1})}
fails(E.NotFoundException, kms.describe_key, KeyId="00000000-0000-0000-0000-000000000000")
assert "Invalid keyId" in fails(E.NotFoundException, kms.describe_key, KeyId="nonsense")
fails(E.NotFoundException, kms.describe_key, KeyId="alias/none")
kms.update_key_description(KeyId=key_id, Description="changed")
assert kms.describe_key(KeyId=key_id)["KeyMetadata"]["Description"] == "changed"
fails("ValidationException", kms.create_key, KeyUsage="SIGN_VERIFY")
fails(E.UnsupportedOperationException, kms.create_key, KeySpec="SM2", KeyUsage="SIGN_VERIFY")
fails(E.MalformedPolicyDocumentException, kms.create_key, Policy="{}")

# Aliases.
kms.create_alias(AliasName="alias/app", TargetKeyId=key_id)
fails(E.AlreadyExistsException, kms.create_alias, AliasName="alias/app", TargetKeyId=second)
fails("NotAuthorizedException", kms.create_alias, AliasName="alias/aws/mine", TargetKeyId=second)
assert [a["TargetKeyId"] for a in pages("list_aliases", "Aliases", KeyId=key_id)] == [key_id]
kms.update_alias(AliasName="alias/app", TargetKeyId=second)
assert kms.describe_key(KeyId="alias/app")["KeyMetadata"]["KeyId"] == second
kms.update_alias(AliasName="alias/app", TargetKeyId=key_id)
kms.create_alias(AliasName="alias/short-lived", TargetKeyId=key_id)
kms.delete_alias(AliasName="alias/short-lived")
fails(E.NotFoundException, kms.delete_alias, AliasName="alias/short-lived")

# Tags.
kms.tag_resource(KeyId=key_id, Tags=[{"TagKey": "team", "TagValue": "b"}, {"TagKey": "x", "TagValue": ""}])
tags = {tag["TagKey"]: tag["TagValue"] for tag in pages("list_resource_tags", "Tags", KeyId=key_id)}
assert tags == {"team": "b", "x": ""}, tags
kms.untag_resource(KeyId=key_id, TagKeys=["x"])
fails(E.TagException, kms.tag_resource, KeyId=key_id, Tags=[{"TagKey": "aws:x", "TagValue": ""}])

# Symmetric encryption.
context = {"app": "billing", "Ä": "ü"}
sealed = kms.encrypt(KeyId="alias/app", Plaintext=b"secret", EncryptionContext=context)
assert sealed["KeyId"] == arn and sealed["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"
blob = sealed["CiphertextBlob"]
opened = kms.decrypt(CiphertextBlob=blob, EncryptionContext=dict(reversed(context.items())))
assert opened["Plaintext"] == b"secret" and opened["KeyId"] == arn
assert kms.decrypt(CiphertextBlob=blob, EncryptionContext=context, KeyId=key_id)["Plaintext"] == b"secret"
fails(E.InvalidCiphertextException, kms.decrypt, CiphertextBlob=blob)
fails(E.InvalidCiphertextException, kms.decrypt, CiphertextBlob=blob, EncryptionContext=context | {"app": "Billing"})
fails(E.InvalidCiphertextException, kms.decrypt, CiphertextBlob=blob[:-1] + bytes([blob[-1] ^ 1]), EncryptionContext=context)
fails(E.InvalidCiphertextException, kms.decrypt, CiphertextBlob=b"nonsense")
fails(E.IncorrectKeyException, kms.decrypt, CiphertextBlob=blob, EncryptionContext=context, KeyId=second)
assert "DryRun" in fails(E.DryRunOperationException, kms.encrypt, KeyId=key_id, Plaintext=b"x", DryRun=True)
fails("ValidationException", kms.encrypt, KeyId=key_id, Plaintext=bytes(4097))
moved = kms.re_encrypt(CiphertextBlob=blob, SourceEncryptionContext=context, DestinationKeyId=second,
                       DestinationEncryptionContext={"new": "1"})
assert moved["SourceKeyId"] == arn and moved["KeyId"].endswith(second)
assert kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"new": "1"})["Plaintext"] == b"secret"
fails(E.InvalidCiphertextException, kms.re_encrypt, CiphertextBlob=blob, DestinationKeyId=second)

# Data keys.
data_key = kms.generate_data_key(KeyId=key_id, KeySpec="AES_256", EncryptionContext=context)
assert len(data_key["Plaintext"]) == 32
assert kms.decrypt(CiphertextBlob=data_key["CiphertextBlob"], EncryptionContext=context)["Plaintext"] == data_key["Plaintext"]
assert len(kms.generate_data_key(KeyId=key_id, NumberOfBytes=1024)["Plaintext"]) == 1024
fails("ValidationException", kms.generate_data_key, KeyId=key_id)
fails("ValidationException", kms.generate_data_key, KeyId=key_id, KeySpec="AES_256", NumberOfBytes=32)
alone = kms.generate_data_key_without_plaintext(KeyId=key_id, KeySpec="AES_128")
assert "Plaintext" not in alone and len(kms.decrypt(CiphertextBlob=alone["CiphertextBlob"])["Plaintext"]) == 16
for spec in "RSA_2048", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1":
    pair = kms.generate_data_key_pair(KeyId=key_id, KeyPairSpec=spec, EncryptionContext=context)
    assert spki(load_der_private_key(pair["PrivateKeyPlaintext"], None).public_key()) == pair["PublicKey"]
    assert pair["KeyPairSpec"] == spec
    private = kms.decrypt(CiphertextBlob=pair["PrivateKeyCiphertextBlob"], EncryptionContext=context)["Plaintext"]
    assert private == pair["PrivateKeyPlaintext"]
alone = kms.generate_data_key_pair_without_plaintext(KeyId=key_id, KeyPairSpec="ECC_NIST_P256")
assert "PrivateKeyPlaintext" not in alone
private = load_der_private_key(kms.decrypt(CiphertextBlob=alone["PrivateKeyCiphertextBlob"])["Plaintext"], None)
assert spki(private.public_key()) == alone["PublicKey"]
assert len(kms.generate_random(NumberOfBytes=1024)["Plaintext"]) == 1024

# RSA encryption.
rsa_id = key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyId"]
public = kms.get_public_key(KeyId=rsa_id)
assert public["KeySpec"] == "RSA_2048" and public["KeyUsage"] == "ENCRYPT_DECRYPT"
assert set(public["EncryptionAlgorithms"]) == {"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}
rsa_public = load_der_public_key(public["PublicKey"])
for algorithm, digest, limit in ("RSAES_OAEP_SHA_1", hashes.SHA1, 214), ("RSAES_OAEP_SHA_256", hashes.SHA256, 190):
    oaep = padding.OAEP(padding.MGF1(digest()), digest(), None)
    outside = rsa_public.encrypt(b"outside", oaep)
    assert kms.decrypt(KeyId=rsa_id, CiphertextBlob=outside, EncryptionAlgorithm=algorithm)["Plaintext"] == b"outside"
    inside = kms.encrypt(KeyId=rsa_id, Plaintext=bytes(limit), EncryptionAlgorithm=algorithm)["CiphertextBlob"]
    assert len(kms.decrypt(KeyId=rsa_id, CiphertextBlob=inside, EncryptionAlgorithm=algorithm)["Plaintext"]) == limit
    fails("ValidationException", kms.encrypt, KeyId=rsa_id, Plaintext=bytes(limit + 1), EncryptionAlgorithm=algorithm)
fails(E.InvalidKeyUsageException, kms.encrypt, KeyId=rsa_id, Plaintext=b"x")
fails(E.InvalidCiphertextException, kms.decrypt, KeyId=rsa_id, CiphertextBlob=bytes(256), EncryptionAlgorithm="RSAES_OAEP_SHA_1")
fails(E.InvalidKeyUsageException, kms.generate_data_key, KeyId=rsa_id, KeySpec="AES_256")

# Signatures.
message = b"a message"
for spec in "RSA_2048", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1":
    signer = key(KeySpec=spec, KeyUsage="SIGN_VERIFY")
    public = load_der_public_key(kms.get_public_key(KeyId=signer["KeyId"])["PublicKey"])
    for algorithm in signer["SigningAlgorithms"]:
        bits = algorithm[-3:]
        digest = getattr(hashes, "SHA" + bits)()
        hashed = hashlib.new("sha" + bits, message).digest()
        for kind, input in ("RAW", message), ("DIGEST", hashed):
            arguments = dict(KeyId=signer["KeyId"], Message=input, MessageType=kind, SigningAlgorithm=algorithm)
            signature = kms.sign(**arguments)["Signature"]
            if spec.startswith("ECC"):
                public.verify(signature, message, ec.ECDSA(digest))
            elif "PSS" in algorithm:
                public.verify(signature, message, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
            else:
                public.verify(signature, message, padding.PKCS1v15(), digest)
            assert kms.verify(**arguments, Signature=signature)["SignatureValid"] is True
            fails(E.KMSInvalidSignatureException, kms.verify, **arguments, Signature=signature[:-1] + bytes([signature[-1] ^ 1]))
        text = fails("ValidationException", kms.sign, KeyId=signer["KeyId"], Message=b"short", MessageType="DIGEST",
                     SigningAlgorithm=algorithm)
        assert text == f"Digest is invalid length for algorithm {algorithm}.", text
    fails(E.InvalidKeyUsageException, kms.encrypt, KeyId=signer["KeyId"], Plaintext=b"x")
fails(E.InvalidKeyUsageException, kms.sign, KeyId=key_id, Message=b"x", SigningAlgorithm="ECDSA_SHA_256")
fails(E.UnsupportedOperationException, kms.get_public_key, KeyId=key_id)

# MACs.
for bits in "224", "256", "384", "512":
    mac_id = key(KeySpec="HMAC_" + bits, KeyUsage="GENERATE_VERIFY_MAC")["KeyId"]
    arguments = dict(KeyId=mac_id, Message=message, MacAlgorithm="HMAC_SHA_" + bits)
    mac = kms.generate_mac(**arguments)["Mac"]
    assert len(mac) * 8 == int(bits)
    assert kms.verify_mac(**arguments, Mac=mac)["MacValid"] is True
    fails(E.KMSInvalidMacException, kms.verify_mac, **arguments, Mac=mac[:-1])

# Agreement.
agreement_id = key(KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")["KeyId"]
peer = ec.generate_private_key(ec.SECP256R1())
public = load_der_public_key(kms.get_public_key(KeyId=agreement_id)["PublicKey"])
secret = kms.derive_shared_secret(KeyId=agreement_id, KeyAgreementAlgorithm="ECDH", PublicKey=spki(peer.public_key()))
assert secret["SharedSecret"] == peer.exchange(ec.ECDH(), public)
wrong = ec.generate_private_key(ec.SECP384R1()).public_key()
fails("ValidationException", kms.derive_shared_secret, KeyId=agreement_id, KeyAgreementAlgorithm="ECDH", PublicKey=spki(wrong))

# Imported material.
def imported(material, way, spec="SYMMETRIC_DEFAULT", usage="ENCRYPT_DECRYPT", key_id=None, **more):
    key_id = key_id or key(Origin="EXTERNAL", KeySpec=spec, KeyUsage=usage)["KeyId"]
    got = kms.get_parameters_for_import(KeyId=key_id, WrappingAlgorithm=way, WrappingKeySpec="RSA_3072")
    digest = hashes.SHA1 if way.endswith("SHA_1") else hashes.SHA256
    oaep = padding.OAEP(padding.MGF1(digest()), digest(), None)
    public = load_der_public_key(got["PublicKey"])
    if way.startswith("RSAES"):
        wrapped = public.encrypt(material, oaep)
    else:
        transport = urandom(32)
        wrapped = public.encrypt(transport, oaep) + aes_key_wrap_with_padding(transport, material)
    more.setdefault("ExpirationModel", "KEY_MATERIAL_DOES_NOT_EXPIRE")
    kms.import_key_material(KeyId=key_id, ImportToken=got["ImportToken"], EncryptedKeyMaterial=wrapped, **more)
    return key_id


material = urandom(32)
external = imported(material, "RSAES_OAEP_SHA_256")
metadata = kms.describe_key(KeyId=external)["KeyMetadata"]
assert metadata["Origin"] == "EXTERNAL" and metadata["ExpirationModel"] == "KEY_MATERIAL_DOES_NOT_EXPIRE"
outer = kms.encrypt(KeyId=external, Plaintext=b"under imported material")["CiphertextBlob"]
kms.delete_imported_key_material(KeyId=external)
assert "pending import" in fails(E.KMSInvalidStateException, kms.decrypt, CiphertextBlob=outer)
fails(E.IncorrectKeyMaterialException, imported, material=urandom(32), way="RSAES_OAEP_SHA_1", key_id=external)
until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=30)
imported(material, "RSA_AES_KEY_WRAP_SHA_256", key_id=external, ExpirationModel="KEY_MATERIAL_EXPIRES", ValidTo=until)
assert kms.decrypt(CiphertextBlob=outer)["Plaintext"] == b"under imported material"
assert abs((kms.describe_key(KeyId=external)["KeyMetadata"]["ValidTo"] - until).total_seconds()) < 2
fresh = key(Origin="EXTERNAL")["KeyId"]
got = kms.get_parameters_for_import(KeyId=fresh, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048")
fails(E.InvalidImportTokenException, kms.import_key_material, KeyId=fresh, ImportToken=b"nonsense", EncryptedKeyMaterial=bytes(256),
      ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE")
fails(E.InvalidCiphertextException, kms.import_key_material, KeyId=fresh, ImportToken=got["ImportToken"],
      EncryptedKeyMaterial=bytes(256), ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE")
theirs = ec.generate_private_key(ec.SECP521R1())
pkcs8 = theirs.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
signer = imported(pkcs8, "RSA_AES_KEY_WRAP_SHA_1", "ECC_NIST_P521", "SIGN_VERIFY")
signature = kms.sign(KeyId=signer, Message=message, SigningAlgorithm="ECDSA_SHA_512")["Signature"]
theirs.public_key().verify(signature, message, ec.ECDSA(hashes.SHA512()))

# Rotation: what was encrypted before opens after.
kms.enable_key_rotation(KeyId=key_id, RotationPeriodInDays=90)
status = kms.get_key_rotation_status(KeyId=key_id)
assert status["KeyRotationEnabled"] and status["RotationPeriodInDays"] == 90 and status["NextRotationDate"]
before = kms.describe_key(KeyId=key_id)["KeyMetadata"]["CurrentKeyMaterialId"]
kms.rotate_key_on_demand(KeyId=key_id)
assert kms.describe_key(KeyId=key_id)["KeyMetadata"]["CurrentKeyMaterialId"] != before
assert kms.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == b"secret"
rotations = pages("list_key_rotations", "Rotations", KeyId=key_id)
assert [rotation["RotationType"] for rotation in rotations] == ["ON_DEMAND"], rotations
kms.disable_key_rotation(KeyId=key_id)
assert kms.get_key_rotation_status(KeyId=key_id)["KeyRotationEnabled"] is False
fails("ValidationException", kms.enable_key_rotation, KeyId=key_id, RotationPeriodInDays=2561)
fails(E.UnsupportedOperationException, kms.enable_key_rotation, KeyId=rsa_id)

# Policies.
policy = json.loads(kms.get_key_policy(KeyId=key_id)["Policy"])
assert policy["Statement"][0]["Action"] == "kms:*"
assert pages("list_key_policies", "PolicyNames", KeyId=key_id) == ["default"]
policy["Statement"][0]["Sid"] = "changed"
kms.put_key_policy(KeyId=key_id, Policy=json.dumps(policy))
assert json.loads(kms.get_key_policy(KeyId=key_id, PolicyName="default")["Policy"]) == policy
fails(E.MalformedPolicyDocumentException, kms.put_key_policy, KeyId=key_id, Policy="nonsense")

# Grants.
grant = kms.create_grant(KeyId=key_id, GranteePrincipal=other_user, RetiringPrincipal=other_user, Operations=["Encrypt", "Decrypt"],
                         Constraints={"EncryptionContextSubset": {"app": "billing"}}, Name="one")
again = kms.create_grant(KeyId=key_id, GranteePrincipal=other_user, RetiringPrincipal=other_user, Operations=["Encrypt", "Decrypt"],
                         Constraints={"EncryptionContextSubset": {"app": "billing"}}, Name="one")
assert grant["GrantId"] == again["GrantId"] and grant["GrantToken"] != again["GrantToken"]
listed = pages("list_grants", "Grants", KeyId=key_id)
assert [(g["GrantId"], g["Name"], g["GranteePrincipal"]) for g in listed] == [(grant["GrantId"], "one", other_user)]
assert [g["GrantId"] for g in pages("list_retirable_grants", "Grants", RetiringPrincipal=other_user)] == [grant["GrantId"]]
kms.revoke_grant(KeyId=key_id, GrantId=grant["GrantId"])
fails(E.NotFoundException, kms.revoke_grant, KeyId=key_id, GrantId=grant["GrantId"])
other = kms.create_grant(KeyId=key_id, GranteePrincipal=other_user, Operations=["Decrypt"])
kms.retire_grant(GrantToken=other["GrantToken"])
assert pages("list_grants", "Grants", KeyId=key_id) == []
fails(E.InvalidGrantTokenException, kms.encrypt, KeyId=key_id, Plaintext=b"x", GrantTokens=["nonsense"])

# States.
kms.disable_key(KeyId=key_id)
assert fails(E.DisabledException, kms.decrypt, CiphertextBlob=blob, EncryptionContext=context) == f"{arn} is disabled."
fails(E.DisabledException, kms.generate_data_key, KeyId=key_id, KeySpec="AES_256")
kms.enable_key(KeyId=key_id)
assert kms.get_key_last_usage(KeyId=key_id)["KeyId"] in (key_id, arn)
deletion = kms.schedule_key_deletion(KeyId=second, PendingWindowInDays=7)
assert deletion["KeyState"] == "PendingDeletion" and deletion["PendingWindowInDays"] == 7
assert "pending deletion" in fails(E.KMSInvalidStateException, kms.encrypt, KeyId=second, Plaintext=b"x")
fails(E.KMSInvalidStateException, kms.enable_key, KeyId=second)
assert kms.cancel_key_deletion(KeyId=second)["KeyId"].endswith(second)
assert kms.describe_key(KeyId=second)["KeyMetadata"]["KeyState"] == "Disabled"
fails("ValidationException", kms.schedule_key_deletion, KeyId=second, PendingWindowInDays=6)

# What this service does not offer says so.
U = E.UnsupportedOperationException
fails(U, kms.create_custom_key_store, CustomKeyStoreName="s")
fails(U, kms.describe_custom_key_stores)
fails(U, kms.connect_custom_key_store, CustomKeyStoreId="cks-1")
fails(U, kms.disconnect_custom_key_store, CustomKeyStoreId="cks-1")
fails(U, kms.update_custom_key_store, CustomKeyStoreId="cks-1")
fails(U, kms.delete_custom_key_store, CustomKeyStoreId="cks-1")
fails(U, kms.replicate_key, KeyId=key_id, ReplicaRegion="eu-west-1")
fails(U, kms.update_primary_region, KeyId=key_id, PrimaryRegion="eu-west-1")
fails(U, kms.create_key, MultiRegion=True)

missing = set(GENERIC.operation_names) - called
assert not missing, missing
json.dump(sorted(called), sys.stdout)
