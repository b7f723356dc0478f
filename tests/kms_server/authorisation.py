"""Who may do what, end to end: a running service asked by boto3 as several users. Prints "ok", or fails with what was wrong.

Standard input: {"endpoint", "region", "account", "users": {name: [access key id, secret]}}; `root` is the account's root, `mount` a
service principal, XYZ, ABC and other are users without policies of their own.
"""

import datetime
import json
import sys
import urllib.error
import urllib.request

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.credentials
from botocore.config import Config
from botocore.exceptions import ClientError

IN = json.load(sys.stdin)
ACCOUNT, REGION, ENDPOINT = IN["account"], IN["region"], IN["endpoint"]


def client(who, region=REGION, secret=None, token=None):
    key, own = IN["users"].get(who, [who, "no secret"])
    return boto3.client("kms", endpoint_url=ENDPOINT, region_name=region, aws_access_key_id=key, aws_secret_access_key=secret or own,
                        aws_session_token=token, config=Config(retries={"total_max_attempts": 1}))


def arn(name):
    return f"arn:aws:iam::{ACCOUNT}:{'root' if name == 'root' else 'user/' + name}"


ROOT, XYZ, ABC, OTHER, MOUNT = (client(who) for who in ("root", "XYZ", "ABC", "other", "mount"))
USERS = {"XYZ": XYZ, "ABC": ABC, "other": OTHER, "mount": MOUNT, "root": ROOT}


def refused(code, call, text="", **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        said = error.response["Error"]
        assert said["Code"] == code and text in said.get("Message", ""), (code, text, said)
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400, error.response
        return said.get("Message", "")
    raise AssertionError(f"{call} {arguments} was not refused with {code}")


def denied(call, **arguments):
    return refused("AccessDeniedException", call, "is not authorized to perform: kms:", **arguments)


def statement(principal, actions, sid=None, effect="Allow", **more):
    principal = principal if isinstance(principal, dict) or principal == "*" else {"AWS": principal}
    return {**({"Sid": sid} if sid else {}), "Effect": effect, "Principal": principal, "Action": actions, "Resource": "*", **more}


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


ACCOUNT_STATEMENT = statement(arn("root"), "kms:*", "Enable IAM User Permissions")
CONSOLE = json.dumps({"Id": "key-consolepolicy-3", "Version": "2012-10-17", "Statement": [
    ACCOUNT_STATEMENT,
    statement(arn("XYZ"), ["kms:Create*", "kms:Describe*", "kms:Enable*", "kms:List*", "kms:Put*", "kms:Update*", "kms:Revoke*",
                           "kms:Disable*", "kms:Get*", "kms:Delete*", "kms:TagResource", "kms:UntagResource",
                           "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion"], "Allow access for Key Administrators"),
    statement(arn("ABC"), ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"],
              "Allow use of the key"),
    statement(arn("ABC"), ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"], "Allow attachment of persistent resources",
              Condition={"Bool": {"kms:GrantIsForAWSResource": "true"}}),
]})


def new_key(text=None, **arguments):
    if text:
        arguments["Policy"] = text
    return ROOT.create_key(**arguments)["KeyMetadata"]["Arn"]


def console():
    key = new_key(CONSOLE)
    blob = ABC.encrypt(KeyId=key, Plaintext=b"secret")["CiphertextBlob"]
    uses = [
        ("encrypt", {"KeyId": key, "Plaintext": b"x"}),
        ("decrypt", {"CiphertextBlob": blob}),
        ("re_encrypt", {"CiphertextBlob": blob, "DestinationKeyId": key}),
        ("generate_data_key", {"KeyId": key, "KeySpec": "AES_256"}),
        ("generate_data_key_without_plaintext", {"KeyId": key, "KeySpec": "AES_256"}),
        ("generate_data_key_pair", {"KeyId": key, "KeyPairSpec": "ECC_NIST_P256"}),
        ("generate_data_key_pair_without_plaintext", {"KeyId": key, "KeyPairSpec": "ECC_NIST_P256"}),
    ]
    tags = [{"TagKey": "Team", "TagValue": "a"}]
    manages = [
        ("tag_resource", {"KeyId": key, "Tags": tags}),
        ("list_resource_tags", {"KeyId": key}),
        ("untag_resource", {"KeyId": key, "TagKeys": ["Team"]}),
        ("update_key_description", {"KeyId": key, "Description": "d"}),
        ("get_key_policy", {"KeyId": key, "PolicyName": "default"}),
        ("list_key_policies", {"KeyId": key}),
        ("put_key_policy", {"KeyId": key, "PolicyName": "default", "Policy": CONSOLE}),
        ("enable_key_rotation", {"KeyId": key}),
        ("get_key_rotation_status", {"KeyId": key}),
        ("list_key_rotations", {"KeyId": key}),
        ("disable_key_rotation", {"KeyId": key}),
        ("create_grant", {"KeyId": key, "GranteePrincipal": arn("other"), "Operations": ["DescribeKey"]}),
        ("list_grants", {"KeyId": key}),
        ("disable_key", {"KeyId": key}),
        ("enable_key", {"KeyId": key}),
        ("schedule_key_deletion", {"KeyId": key, "PendingWindowInDays": 7}),
        ("cancel_key_deletion", {"KeyId": key}),
        ("enable_key", {"KeyId": key}),
    ]
    for name, arguments in uses:
        getattr(ABC, name)(**arguments)
        text = denied(getattr(XYZ, name), **arguments)
        assert arn("XYZ") in text and key in text, text
        denied(getattr(OTHER, name), **arguments)
    for name, arguments in manages:
        denied(getattr(ABC, name), **arguments)
        getattr(XYZ, name)(**arguments)
    ABC.describe_key(KeyId=key), XYZ.describe_key(KeyId=key)
    assert ABC.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"
    XYZ.disable_key(KeyId=key)
    refused("DisabledException", ABC.decrypt, f"{key} is disabled.", CiphertextBlob=blob)
    denied(XYZ.decrypt, CiphertextBlob=blob)
    XYZ.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    refused("KMSInvalidStateException", ABC.decrypt, "pending deletion", CiphertextBlob=blob)


def services():
    key = new_key(CONSOLE)
    grant = {"KeyId": key, "GranteePrincipal": arn("other"), "Operations": ["Decrypt"]}
    denied(MOUNT.create_grant, **grant)
    if_service = {"Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}}}
    grants = ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"]
    for named in (arn("mount"), {"Service": "mount"}):
        text = policy(ACCOUNT_STATEMENT, statement(arn("ABC"), grants, **if_service), statement(named, grants, **if_service))
        ROOT.put_key_policy(KeyId=key, PolicyName="default", Policy=text)
        made = MOUNT.create_grant(**grant)["GrantId"]
        assert [g["GrantId"] for g in MOUNT.list_grants(KeyId=key)["Grants"]] == [made]
        MOUNT.revoke_grant(KeyId=key, GrantId=made)
        denied(ABC.create_grant, **grant)
    # What a service may, a user of the same name elsewhere may not.
    text = policy(ACCOUNT_STATEMENT, statement({"Service": "other"}, "kms:*"))
    ROOT.put_key_policy(KeyId=key, PolicyName="default", Policy=text)
    denied(OTHER.encrypt, KeyId=key, Plaintext=b"x")


def grants():
    key = new_key()
    context = {"App": "x"}
    blob = ROOT.encrypt(KeyId=key, Plaintext=b"p", EncryptionContext=context)["CiphertextBlob"]
    terms = {"KeyId": key, "GranteePrincipal": arn("other"), "Operations": ["Decrypt", "DescribeKey", "CreateGrant", "RetireGrant"],
             "Constraints": {"EncryptionContextSubset": {"app": "x"}}, "Name": "n", "RetiringPrincipal": arn("XYZ")}
    denied(OTHER.decrypt, CiphertextBlob=blob, EncryptionContext=context)
    first, second = ROOT.create_grant(**terms), ROOT.create_grant(**terms)
    assert first["GrantId"] == second["GrantId"] and first["GrantToken"] != second["GrantToken"]
    assert ROOT.create_grant(**{**terms, "Operations": ["Decrypt"]})["GrantId"] != first["GrantId"]
    assert OTHER.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == b"p"
    assert OTHER.decrypt(CiphertextBlob=blob, EncryptionContext=context, GrantTokens=[first["GrantToken"]])["Plaintext"] == b"p"
    refused("InvalidGrantTokenException", OTHER.decrypt, CiphertextBlob=blob, EncryptionContext=context, GrantTokens=["AAAA"])
    OTHER.describe_key(KeyId=key)
    denied(OTHER.encrypt, KeyId=key, Plaintext=b"x", EncryptionContext=context)
    plain = ROOT.encrypt(KeyId=key, Plaintext=b"p")["CiphertextBlob"]
    denied(OTHER.decrypt, CiphertextBlob=plain)
    wrong = ROOT.encrypt(KeyId=key, Plaintext=b"p", EncryptionContext={"App": "X"})["CiphertextBlob"]
    denied(OTHER.decrypt, CiphertextBlob=wrong, EncryptionContext={"App": "X"})
    # Case counts in the context itself.
    refused("InvalidCiphertextException", OTHER.decrypt, CiphertextBlob=blob, EncryptionContext={"app": "x"})

    child = {"KeyId": key, "GranteePrincipal": arn("ABC"), "Operations": ["Decrypt"]}
    denied(OTHER.create_grant, **child)
    denied(OTHER.create_grant, **{**child, "Operations": ["Decrypt", "Encrypt"], "Constraints": terms["Constraints"]})
    denied(OTHER.create_grant, **child, Constraints={"EncryptionContextSubset": {"App": "y"}})
    stricter = OTHER.create_grant(**child, Constraints={"EncryptionContextEquals": {"App": "x", "More": "y"}})
    denied(ABC.decrypt, CiphertextBlob=blob, EncryptionContext=context)
    both = ROOT.encrypt(KeyId=key, Plaintext=b"q", EncryptionContext={"More": "y", "App": "x"})["CiphertextBlob"]
    assert ABC.decrypt(CiphertextBlob=both, EncryptionContext={"App": "x", "More": "y"})["Plaintext"] == b"q"

    denied(ABC.retire_grant, KeyId=key, GrantId=first["GrantId"])
    listed = ROOT.list_retirable_grants(RetiringPrincipal=arn("XYZ"))["Grants"]
    assert first["GrantId"] in [g["GrantId"] for g in listed] and len(listed) == 2
    for grant in listed:
        XYZ.retire_grant(KeyId=key, GrantId=grant["GrantId"])
    denied(OTHER.decrypt, CiphertextBlob=blob, EncryptionContext=context)
    denied(OTHER.revoke_grant, KeyId=key, GrantId=stricter["GrantId"])
    ROOT.revoke_grant(KeyId=key, GrantId=stricter["GrantId"])
    denied(ABC.decrypt, CiphertextBlob=both, EncryptionContext={"App": "x", "More": "y"})
    own = ROOT.create_grant(KeyId=key, GranteePrincipal=arn("other"), Operations=["RetireGrant"])
    OTHER.retire_grant(GrantToken=own["GrantToken"])
    refused("NotFoundException", ROOT.retire_grant, GrantToken=own["GrantToken"])


def re_encryption():
    source, target = new_key(), new_key()
    blob = ROOT.encrypt(KeyId=source, Plaintext=b"p")["CiphertextBlob"]
    move = {"CiphertextBlob": blob, "DestinationKeyId": target}
    assert "kms:ReEncryptFrom" in denied(OTHER.re_encrypt, **move)
    ROOT.create_grant(KeyId=source, GranteePrincipal=arn("other"), Operations=["ReEncryptFrom", "Decrypt"])
    assert "kms:ReEncryptTo" in denied(OTHER.re_encrypt, **move)
    ROOT.create_grant(KeyId=target, GranteePrincipal=arn("other"), Operations=["ReEncryptTo"])
    moved = OTHER.re_encrypt(**move)
    assert moved["KeyId"] == target and moved["SourceKeyId"] == source
    denied(OTHER.decrypt, CiphertextBlob=moved["CiphertextBlob"])
    same = statement(arn("ABC"), "kms:ReEncrypt*", Condition={"Bool": {"kms:ReEncryptOnSameKey": "true"}})
    ROOT.put_key_policy(KeyId=source, PolicyName="default", Policy=policy(ACCOUNT_STATEMENT, same))
    ROOT.put_key_policy(KeyId=target, PolicyName="default", Policy=policy(ACCOUNT_STATEMENT, same))
    denied(ABC.re_encrypt, **move)
    ABC.re_encrypt(CiphertextBlob=blob, DestinationKeyId=source)


def precedence():
    deny = statement("*", "kms:Decrypt", effect="Deny", Condition={"StringNotEquals": {"aws:PrincipalArn": arn("ABC")}})
    key = new_key()
    blob = ROOT.encrypt(KeyId=key, Plaintext=b"p")["CiphertextBlob"]
    for name in ("other", "ABC"):
        ROOT.create_grant(KeyId=key, GranteePrincipal=arn(name), Operations=["Decrypt"])
    ROOT.put_key_policy(KeyId=key, PolicyName="default", Policy=policy(ACCOUNT_STATEMENT, deny))
    for who in (OTHER, ROOT):
        assert "explicit deny in a resource-based policy" in denied(who.decrypt, CiphertextBlob=blob)
    assert ABC.decrypt(CiphertextBlob=blob)["Plaintext"] == b"p"
    # A key without its account's statement is beyond the root, too.
    key = new_key(policy(statement(arn("ABC"), "kms:*")), BypassPolicyLockoutSafetyCheck=True)
    denied(ROOT.describe_key, KeyId=key)
    ABC.describe_key(KeyId=key)


def conditions():
    key = new_key()
    cases = [
        ({"StringEquals": {"kms:EncryptionContext:App": "x"}}, {"EncryptionContext": {"App": "x"}}, {"EncryptionContext": {"App": "y"}}),
        ({"StringEquals": {"kms:EncryptionContext:APP": "x"}}, {"EncryptionContext": {"App": "x"}}, {}),
        ({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["App"]}, "Null": {"kms:EncryptionContextKeys": "false"}},
         {"EncryptionContext": {"App": "x"}}, {"EncryptionContext": {"App": "x", "b": "c"}}),
        ({"StringEquals": {"kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}}, {}, None),
        ({"StringEquals": {"kms:CallerAccount": ACCOUNT}, "Bool": {"aws:SecureTransport": "false"}}, {}, None),
        ({"StringEquals": {"kms:CallerAccount": "999999999999"}}, None, {}),
        ({"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, {}, None),
        ({"NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, None, {}),
        ({"StringLike": {"aws:UserAgent": "Boto3/*"}, "StringEquals": {"aws:RequestedRegion": REGION, "aws:username": "other"}}, {}, None),
        ({"DateGreaterThan": {"aws:CurrentTime": "2099-01-01T00:00:00Z"}}, None, {}),
        ({"NumericGreaterThan": {"aws:EpochTime": 1700000000}}, {}, None),
        ({"StringEquals": {"kms:RequestAlias": "alias/conditions"}}, {"KeyId": "alias/conditions"}, {}),
        ({"ForAnyValue:StringLike": {"kms:ResourceAliases": "alias/cond*"}}, {}, None),
        ({"StringEquals": {"aws:ResourceTag/team": "a", "kms:KeySpec": "SYMMETRIC_DEFAULT", "kms:KeyUsage": "ENCRYPT_DECRYPT"}}, {}, None),
        ({"StringNotEquals": {"kms:NoSuchKey": "a"}}, None, {}),
        ({"Null": {"kms:NoSuchKey": "true"}}, None, {}),
        ({"StringEqualsIfExists": {"aws:SourceVpc": "vpc-1"}}, {}, None),
        ({"StringEquals": {"kms:ViaService": "x.us-east-1.amazonaws.com"}}, None, {}),
    ]
    ROOT.create_alias(AliasName="alias/conditions", TargetKeyId=key)
    ROOT.tag_resource(KeyId=key, Tags=[{"TagKey": "Team", "TagValue": "a"}])
    for condition, good, bad in cases:
        text = policy(ACCOUNT_STATEMENT, statement(arn("other"), "kms:Encrypt", Condition=condition))
        ROOT.put_key_policy(KeyId=key, PolicyName="default", Policy=text)
        try:
            if good is not None:
                OTHER.encrypt(**{"KeyId": key, "Plaintext": b"x", **good})
            if bad is not None:
                denied(OTHER.encrypt, **{"KeyId": key, "Plaintext": b"x", **bad})
        except Exception as error:
            raise AssertionError(condition) from error


def documents():
    key = new_key()
    put = {"KeyId": key, "PolicyName": "default"}
    everybody = statement("*", "kms:*")
    for text in (
        "my test policy", "{}", policy(), policy({**everybody, "Effect": "allow"}), policy({**everybody, "Extra": 1}),
        policy({**everybody, "Principal": {"AWS": "AIDACKCEVSQ6C2EXAMPLE"}}), policy({**everybody, "Principal": {"AWS": arn("nobody")}}),
        policy({**everybody, "Condition": {"StringEqual": {"aws:username": "a"}}}), policy({**everybody, "Principal": None}),
        policy({"Effect": "Allow", "Action": "kms:*", "Resource": "*"}), policy({**everybody, "Action": "Decrypt"}),
        policy({**everybody, "Sid": "a"}, {**everybody, "Sid": "a"}), json.dumps({"Version": "2013-10-17", "Statement": everybody}),
    ):
        refused("MalformedPolicyDocumentException", ROOT.put_key_policy, **put, Policy=text)
        refused("MalformedPolicyDocumentException", ROOT.create_key, Policy=text)
    large = policy(everybody, {**everybody, "Sid": "x" * 32768})
    refused("LimitExceededException", ROOT.put_key_policy, **put, Policy=large)
    # The old policy still stands.
    denied(OTHER.encrypt, KeyId=key, Plaintext=b"x")
    lock = policy(statement(arn("ABC"), "kms:*"))
    text = "The new key policy will not allow you to update the key policy in the future."
    refused("MalformedPolicyDocumentException", ROOT.put_key_policy, text, **put, Policy=lock)
    refused("MalformedPolicyDocumentException", ROOT.create_key, text, Policy=lock)
    no_bypass = statement("*", "kms:PutKeyPolicy", effect="Deny", Condition={"Bool": {"kms:BypassPolicyLockoutSafetyCheck": "true"}})
    ROOT.put_key_policy(**put, Policy=policy(ACCOUNT_STATEMENT, no_bypass))
    denied(ROOT.put_key_policy, **put, Policy=lock, BypassPolicyLockoutSafetyCheck=True)
    ROOT.put_key_policy(**put, Policy=policy(ACCOUNT_STATEMENT))
    ROOT.put_key_policy(**put, Policy=lock, BypassPolicyLockoutSafetyCheck=True)
    denied(ROOT.put_key_policy, **put, Policy=policy(ACCOUNT_STATEMENT))
    ABC.put_key_policy(**put, Policy=policy(ACCOUNT_STATEMENT, statement(arn("ABC"), "kms:Put*")))


def aliases():
    key, second = new_key(CONSOLE), new_key(CONSOLE)
    # The console's administrators need a policy of their own for the alias itself.
    denied(XYZ.create_alias, AliasName="alias/two", TargetKeyId=key)
    ROOT.create_alias(AliasName="alias/two", TargetKeyId=key)
    denied(ABC.update_alias, AliasName="alias/two", TargetKeyId=second)
    denied(ABC.delete_alias, AliasName="alias/two")
    ROOT.update_alias(AliasName="alias/two", TargetKeyId=second)
    ROOT.delete_alias(AliasName="alias/two")
    for call, arguments in ((OTHER.create_key, {}), (OTHER.list_keys, {}), (OTHER.list_aliases, {}), (OTHER.generate_random, {"NumberOfBytes": 8})):
        text = denied(call, **arguments)
        assert "identity-based policy" in text, text


def send(body, headers, url="/", method="POST"):
    request = urllib.request.Request(ENDPOINT + url, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or "{}"), error.headers


def signed(who, operation, body, sign_region=REGION, offset=0, expires=None, signer=botocore.auth.SigV4Auth):
    """Headers and path of a request that botocore signs `offset` seconds from now."""
    key, secret = IN["users"][who]
    request = botocore.awsrequest.AWSRequest("POST", ENDPOINT + "/", data=body, headers={
        "X-Amz-Target": f"TrentService.{operation}", "Content-Type": "application/x-amz-json-1.1", "Host": ENDPOINT.split("//")[1]})
    when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=offset)
    request.context["timestamp"] = when.strftime("%Y%m%dT%H%M%SZ")
    credentials = botocore.credentials.Credentials(key, secret)
    if expires is None:
        auth = signer(credentials, "kms", sign_region)
        real = auth.add_auth
        original, botocore.auth.get_current_datetime = botocore.auth.get_current_datetime, lambda *a, **k: when.replace(tzinfo=None)
        try:
            real(request)
        finally:
            botocore.auth.get_current_datetime = original
        return dict(request.headers.items()), "/"
    # Presigned, with the body's own hash: what botocore presigns for JSON services has no body.
    scope = f"{key}/{when:%Y%m%d}/{sign_region}/kms/aws4_request"
    names = "content-type;host;x-amz-target"
    query = {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": scope, "X-Amz-Date": request.context["timestamp"],
             "X-Amz-Expires": str(expires), "X-Amz-SignedHeaders": names}
    import hashlib
    import hmac
    from urllib.parse import quote
    text = "&".join(f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in sorted(query.items()))
    headers = dict(request.headers.items())
    lines = [f"{name}:{headers[proper]}" for name, proper in zip(names.split(";"), ("Content-Type", "Host", "X-Amz-Target"))]
    canonical = "\n".join(["POST", "/", text, *lines, "", names, hashlib.sha256(body).hexdigest()])
    to_sign = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope.split("/", 1)[1], hashlib.sha256(canonical.encode()).hexdigest()])
    mac = ("AWS4" + secret).encode()
    for part in (f"{when:%Y%m%d}", sign_region, "kms", "aws4_request", to_sign):
        mac = hmac.new(mac, part.encode(), "sha256").digest()
    return headers, f"/?{text}&X-Amz-Signature={mac.hex()}"


def signatures():
    key = new_key()
    body = json.dumps({"KeyId": key, "Plaintext": "eA=="}).encode()

    def outcome(headers, url, sent=body):
        status, answer, said = send(sent, headers, url)
        assert status in (200, 400) and "x-amzn-RequestId" in said, (status, answer)
        return answer.get("__type", "ok"), answer.get("message", "")

    assert outcome(*signed("root", "Encrypt", body))[0] == "ok"
    assert outcome(*signed("root", "Encrypt", body, expires=60))[0] == "ok"
    assert outcome(*signed("root", "Encrypt", body, offset=-600, expires=900))[0] == "ok"
    invalid = "InvalidSignatureException"
    assert outcome(*signed("root", "Encrypt", body), sent=body + b" ")[0] == invalid
    assert outcome(*signed("root", "Encrypt", body, expires=60), sent=body + b" ")[0] == invalid
    for offset in (-240, 240):
        assert outcome(*signed("root", "Encrypt", body, offset=offset))[0] == "ok"
    for offset, expires, text in ((-330, None, "Signature expired: "), (330, None, "Signature not yet current: "),
                                  (-70, 60, "Signature expired: "), (330, 60, "Signature not yet current: ")):
        code, message = outcome(*signed("root", "Encrypt", body, offset=offset, expires=expires))
        assert code == invalid and message.startswith(text), (code, message)
    headers, url = signed("root", "Encrypt", body)
    code, message = outcome({**headers, "X-Amz-Target": "TrentService.Decrypt"}, url)
    assert code == invalid, (code, message)
    code, message = outcome({**headers, "X-Amz-Extra": "1"}, url)
    assert code == "IncompleteSignatureException" and "x-amz-extra" in message, (code, message)
    headers.pop("Authorization")
    assert outcome(headers, url)[0] == "MissingAuthenticationTokenException"
    assert outcome({**headers, "Authorization": "Bearer x"}, url)[0] == "IncompleteSignatureException"

    refused(invalid, client("root", secret="wrong").list_keys, "The request signature we calculated does not match")
    refused("UnrecognizedClientException", client("AKIANOBODY0000000000").list_keys, "The security token included in the request is invalid.")
    refused("UnrecognizedClientException", client("root", token="session").list_keys)
    text = refused(invalid, client("root", region="eu-west-1").list_keys, "Credential should be scoped to a valid region, not 'eu-west-1'")
    assert f"'{REGION}'" in text, text


for part in (console, services, grants, re_encryption, precedence, conditions, documents, aliases, signatures):
    part()
print('"ok"')
