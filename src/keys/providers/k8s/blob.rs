//! The bytes of a blob: what the plugin answered, and the key wrapped under the seed inside it. Knows no plugin.

use std::collections::BTreeMap;

use super::{messages::EncryptResponse, plugin::Trouble};
use crate::crypto::{
    AuthError,
    kdf::Prk,
    random,
    secret::Secret32,
    wrap::{self, WRAPPED_LEN},
};
use crate::keys::EncryptionContext;

const BLOB_VERSION: u8 = 1;
const DERIVE_LABEL: &[u8] = b"envelopefs k8skms v1 derive";
const WRAP_LABEL: &[u8] = b"envelopefs k8skms v1 wrap";
/// What any provider's blob may have.
pub const BLOB_MAX: usize = 6144;
/// Of ciphertext and of key id each, by the protocol.
const PART_MAX: usize = 1024;

/// What `Decrypt` needs to see again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    pub ciphertext: Vec<u8>,
    pub key_id: String,
    pub annotations: BTreeMap<String, Vec<u8>>,
}

impl Seed {
    pub fn from_answer(answer: EncryptResponse) -> Result<Self, Trouble> {
        let EncryptResponse { ciphertext, key_id, annotations } = answer;
        for (what, len) in [("ciphertext", ciphertext.len()), ("key_id", key_id.len())] {
            if !(1..=PART_MAX).contains(&len) {
                return Err(Trouble::Unreachable(format!(
                    "the plugin answered {len} bytes of {what}, where KMS v2 has 1 to {PART_MAX}"
                )));
            }
        }
        let annotated: usize = annotations.iter().map(|(name, value)| 4 + name.len() + value.len()).sum();
        let seed = Self { ciphertext, key_id, annotations };
        let len = 7 + seed.ciphertext.len() + seed.key_id.len() + annotated + WRAPPED_LEN;
        if len > BLOB_MAX {
            return Err(Trouble::Config(format!(
                "with {annotated} bytes of the plugin's annotations a wrapped key takes {len} bytes, and a file's header has \
                 room for {BLOB_MAX}: this plugin cannot be used"
            )));
        }
        Ok(seed)
    }

    /// `version 1`, then each as `len u16 ‖ bytes`: ciphertext, key id; `count u16`, and as many names and values of
    /// annotations in order. Little-endian.
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![BLOB_VERSION];
        let mut put = |bytes: &[u8]| {
            out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        put(&self.ciphertext);
        put(self.key_id.as_bytes());
        out.extend_from_slice(&u16::try_from(self.annotations.len()).unwrap_or(u16::MAX).to_le_bytes());
        for part in self.annotations.iter().flat_map(|(name, value)| [name.as_bytes(), value]) {
            out.extend_from_slice(&u16::try_from(part.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (&BLOB_VERSION, mut rest) = bytes.split_first()? else { return None };
        let ciphertext = take(&mut rest)?.to_vec();
        let key_id = String::from_utf8(take(&mut rest)?.to_vec()).ok()?;
        let count = take_u16(&mut rest)?;
        let mut annotations = BTreeMap::new();
        for _ in 0..count {
            let name = String::from_utf8(take(&mut rest)?.to_vec()).ok()?;
            annotations.insert(name, take(&mut rest)?.to_vec());
        }
        rest.is_empty().then_some(Self { ciphertext, key_id, annotations })
    }
}

fn take_u16(rest: &mut &[u8]) -> Option<usize> {
    let (len, tail) = rest.split_first_chunk::<2>()?;
    *rest = tail;
    Some(usize::from(u16::from_le_bytes(*len)))
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_u16(rest)?;
    let (part, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(part)
}

/// `seed part ‖ nonce 12 ‖ ciphertext 32 ‖ tag 16`. `material` is what the plugin keeps in `seed`, used for this one blob.
pub fn seal(seed: &Seed, material: &Secret32, key: &Secret32, context: &EncryptionContext) -> Vec<u8> {
    let mut blob = seed.encode();
    let wrapped = wrap::wrap_key(&kek(material, context), &random::array(), &authenticated(&blob, context), key);
    blob.extend_from_slice(&wrapped);
    blob
}

/// The parts of a blob; `None` where it is not one.
pub fn parse(blob: &[u8]) -> Option<(Seed, &[u8])> {
    if blob.len() > BLOB_MAX {
        return None;
    }
    let (seed, wrapped) = blob.split_at_checked(blob.len().checked_sub(WRAPPED_LEN)?)?;
    Some((Seed::decode(seed)?, wrapped))
}

pub fn open(
    seed: &Seed,
    material: &Secret32,
    wrapped: &[u8],
    context: &EncryptionContext,
) -> Result<Secret32, AuthError> {
    wrap::unwrap_key(&kek(material, context), &authenticated(&seed.encode(), context), wrapped)
}

fn kek(material: &Secret32, context: &EncryptionContext) -> Secret32 {
    Prk::from_uniform(material).expand(&[DERIVE_LABEL, &context.canonical_bytes()])
}

/// Holds the plugin's part together with the wrapped key, which the protocol itself does not.
fn authenticated(seed: &[u8], context: &EncryptionContext) -> Vec<u8> {
    let context = context.canonical_bytes();
    let len = u32::try_from(seed.len()).unwrap_or(u32::MAX).to_le_bytes();
    [WRAP_LABEL, &len, seed, &context].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> EncryptResponse {
        EncryptResponse {
            ciphertext: vec![7; 40],
            key_id: "kek/1".into(),
            annotations: [("a.example".to_string(), vec![1, 2]), ("b.example".to_string(), vec![])].into(),
        }
    }

    #[test]
    fn every_flipped_bit_and_another_context_are_seen() {
        let context = EncryptionContext::for_branch(&[1; 16], &[2; 16]);
        let seed = Seed::from_answer(answer()).unwrap();
        let (material, key) = (Secret32::random(), Secret32::random());
        let blob = seal(&seed, &material, &key, &context);
        let open = |blob: &[u8], context: &EncryptionContext| {
            let (seed, wrapped) = parse(blob)?;
            super::open(&seed, &material, wrapped, context).ok()
        };
        assert_eq!(parse(&blob).unwrap().0, seed);
        assert_eq!(open(&blob, &context).unwrap().expose(), key.expose());
        for bit in 0..blob.len() * 8 {
            let mut bad = blob.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&bad, &context).is_none(), "bit {bit}");
        }
        assert!((0..blob.len()).all(|len| open(&blob[..len], &context).is_none()));
        assert!(open(&blob, &EncryptionContext::for_branch(&[1; 16], &[3; 16])).is_none());
        assert!(parse(&vec![BLOB_VERSION; BLOB_MAX + 1]).is_none());
    }

    #[test]
    fn answers_beyond_the_protocol_or_the_header_are_refused() {
        let with = |change: &dyn Fn(&mut EncryptResponse)| {
            let mut answer = answer();
            change(&mut answer);
            Seed::from_answer(answer)
        };
        let garbage = |answer| matches!(answer, Err(Trouble::Unreachable(text)) if text.contains("1 to 1024"));
        assert!(garbage(with(&|a| a.ciphertext.clear())));
        assert!(garbage(with(&|a| a.ciphertext = vec![0; PART_MAX + 1])));
        assert!(garbage(with(&|a| a.key_id.clear())));
        assert!(garbage(with(&|a| a.key_id = "x".repeat(PART_MAX + 1))));
        let full = |len| with(&move |a| drop(a.annotations.insert("c.example".into(), vec![0; len])));
        let room = BLOB_MAX - full(0).unwrap().encode().len() - WRAPPED_LEN;
        assert_eq!(full(room).unwrap().encode().len() + WRAPPED_LEN, BLOB_MAX);
        for len in [room + 1, 70_000] {
            assert!(matches!(full(len), Err(Trouble::Config(text)) if text.contains("annotations")));
        }
    }
}
