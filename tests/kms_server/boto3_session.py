"""The session of an article about KMS, as it is written there."""

import boto3

kms = boto3.client('kms')                       # endpoint, region and credentials from the environment
key_id = 'alias/test'
database_password = 'Lorem-ipsum-dolor-sit-amet.'
result = kms.encrypt(KeyId=key_id, Plaintext=database_password)
encrypted_database_password = result['CiphertextBlob']
decrypted = kms.decrypt(CiphertextBlob=encrypted_database_password)
assert decrypted['Plaintext'].decode('utf-8') == database_password
print('"ok"')
