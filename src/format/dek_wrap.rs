//! Wrapping a file's DEK under its branch key, as the header's wrapped-DEK TLV carries it. Knows no provider.

use super::{BranchId, FileId, SUITE, VolumeId, header::WrappedDek};
use crate::crypto::{
    AuthError,
    kdf::Prk,
    secret::Secret32,
    wrap::{unwrap_key, wrap_key},
};

/// Info string of the wrapping key and first bytes of the AAD.
const LABEL: &[u8; 22] = b"envelopefs v1 dek wrap";

impl WrappedDek {
    /// `salt` and `nonce` are fresh random bytes.
    pub fn seal(
        branch: (BranchId, &Secret32),
        volume_id: &VolumeId,
        file_id: &FileId,
        dek: &Secret32,
        salt: [u8; 16],
        nonce: [u8; 12],
    ) -> Self {
        let (branch_id, branch_key) = branch;
        let wrapped = wrap_key(&wrapping_key(branch_key, &salt), &nonce, &aad(volume_id, file_id, &branch_id), dek);
        Self { branch_id, salt, wrapped }
    }

    /// The DEK, where `branch_key` is the one that wrapped it for exactly this file of this volume.
    pub fn open(&self, branch_key: &Secret32, volume_id: &VolumeId, file_id: &FileId) -> Result<Secret32, AuthError> {
        unwrap_key(&wrapping_key(branch_key, &self.salt), &aad(volume_id, file_id, &self.branch_id), &self.wrapped)
    }
}

/// One key per file: `HKDF-Expand(HKDF-Extract(salt, branch key), label)`.
fn wrapping_key(branch_key: &Secret32, salt: &[u8; 16]) -> Secret32 {
    Prk::extract(salt, branch_key).expand(&[LABEL])
}

/// `label 22 ‖ suite 2 ‖ volume id 16 ‖ file id 32 ‖ branch id 16`.
fn aad(volume_id: &VolumeId, file_id: &FileId, branch_id: &BranchId) -> Vec<u8> {
    [LABEL.as_slice(), &SUITE.to_le_bytes(), volume_id, file_id, branch_id].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Corpus 14: a wrapped DEK opens in its own file, branch and volume only.
    #[test]
    fn bound_to_volume_file_and_branch() {
        let (branch, dek) = (Secret32::from_bytes([1; 32]), Secret32::from_bytes([2; 32]));
        let wrapped = WrappedDek::seal(([3; 16], &branch), &[4; 16], &[5; 32], &dek, [6; 16], [7; 12]);
        assert_eq!(wrapped.open(&branch, &[4; 16], &[5; 32]).unwrap().expose(), dek.expose());
        assert!(wrapped.open(&branch, &[9; 16], &[5; 32]).is_err());
        assert!(wrapped.open(&branch, &[4; 16], &[9; 32]).is_err());
        assert!(wrapped.open(&dek, &[4; 16], &[5; 32]).is_err());
        let moved = WrappedDek { branch_id: [9; 16], ..wrapped.clone() };
        assert!(moved.open(&branch, &[4; 16], &[5; 32]).is_err());
        let resalted = WrappedDek { salt: [9; 16], ..wrapped };
        assert!(resalted.open(&branch, &[4; 16], &[5; 32]).is_err());
    }
}
