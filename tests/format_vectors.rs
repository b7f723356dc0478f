//! Golden vectors: the bytes that version 1 of the format means, in both directions. `doc/FORMAT.md` describes them;
//! `tests/vectors/reference.py`, a second implementation, made them.

use data_encoding::HEXLOWER;
use envelopefs::crypto::{aead::AeadKey, file_keys::FileKeys, secret::Secret32};
use envelopefs::format::{
    KeyRef, block,
    dir_id::DirRecord,
    geometry::{BadLength, Geometry, Length, PAGE, PLAIN, blocks_for},
    header::{CmkSlot, FileHeader, HeaderError, Unverified, WrappedDek},
    names::{Decoded, NameCodec},
    small::{self, XattrCodec},
    volume::{
        BranchRecord, DirectoryCmk, KeyMode, UnverifiedVolume, VolumeConfig, VolumeKeys, check_commitment,
        key_commitment,
    },
};
use serde_json::Value;

fn load(file: &str) -> Value {
    let path = format!("{}/tests/vectors/{file}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

fn list(v: &Value) -> &[Value] {
    v.as_array().unwrap()
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap()
}

fn number(v: &Value) -> u64 {
    v.as_u64().unwrap()
}

fn bytes(v: &Value) -> Vec<u8> {
    HEXLOWER.decode(text(v).as_bytes()).unwrap()
}

fn array<const N: usize>(v: &Value) -> [u8; N] {
    bytes(v).try_into().unwrap()
}

fn secret(v: &Value) -> Secret32 {
    Secret32::from_bytes(array(v))
}

fn file_keys(v: &Value) -> FileKeys {
    FileKeys::derive(&array(&v["file_id"]), &secret(&v["dek"]))
}

fn volume_keys(v: &Value) -> VolumeKeys {
    VolumeKeys::derive(&array(&v["volume_id"]), &secret(&v["volume_key"]))
}

fn assert_hex(got: &[u8], expected: &Value, what: &str) {
    assert_eq!(HEXLOWER.encode(got), text(expected), "{what}");
}

#[test]
fn keys() {
    let v = load("keys");
    let volume = volume_keys(&v);
    let pairs = [
        ("names", &volume.names),
        ("dir", &volume.dir_id),
        ("targets", &volume.targets),
        ("xattrs", &volume.xattrs),
        ("origin", &volume.origin),
        ("config", &volume.config),
    ];
    for (name, key) in pairs {
        assert_hex(key.expose(), &v["volume"][name], name);
    }
    assert_hex(&volume.commitment, &v["volume"]["commit"], "commit");
    let file = file_keys(&v);
    assert_hex(&file.commitment(), &v["file_commitment"], "file commitment");
    assert_hex(&file.header_mac(b"abc"), &v["file_header_mac_of_abc"], "header MAC");
    assert_hex(file.xattr_key().expose(), &v["file_xattr_key"], "xattr key");
    let b = &v["block_key"];
    let mut text = bytes(&b["plain"]);
    let tag = file.block_key(array(&b["salt"])).seal(&array(&b["nonce"]), b"", &mut text);
    assert_hex(&text, &b["ciphertext"], "block key");
    assert_hex(&tag, &b["tag"], "block key");
    let c = &v["key_commitment"];
    assert_hex(&key_commitment(&secret(&c["key"])), &c["commitment"], "key commitment");
    assert!(check_commitment(&secret(&c["key"]), &array(&c["commitment"])).is_ok());
}

#[test]
fn blocks() {
    let v = load("block");
    let keys = file_keys(&v);
    for b in list(&v["blocks"]) {
        let (index, valid_len) = (number(&b["index"]), u16::try_from(number(&b["valid_len"])).unwrap());
        let salt = array(&b["key_salt"]);
        let seed = number(&b["plain_seed"]) as usize;
        let plain: Vec<u8> = (0..usize::from(valid_len)).map(|i| (7 * i + seed) as u8).collect();
        let key: &AeadKey = &keys.block_key(salt);

        let mut page = [0u8; PAGE];
        page[PAGE - PLAIN..][..plain.len()].copy_from_slice(&plain);
        block::seal(key, salt, &array(&b["nonce"]), index, valid_len, &mut page);
        assert_hex(&page, &b["page"], &format!("block {index}"));

        let page: [u8; PAGE] = array(&b["page"]);
        let peek = block::peek(&page).unwrap();
        assert_eq!((peek.key_salt, peek.valid_len), (salt, valid_len));
        let mut out = [0u8; PLAIN];
        assert_eq!(block::open(key, index, &page, &mut out), Ok(valid_len));
        assert_eq!(out[..plain.len()], plain);
        assert!(block::is_hole(&out[plain.len()..]));
    }
}

fn cmk_slots(v: &Value) -> Vec<CmkSlot> {
    list(v)
        .iter()
        .map(|s| CmkSlot {
            provider: text(&s["provider"]).into(),
            key_ref: text(&s["key_ref"]).into(),
            blob: bytes(&s["blob"]),
            commitment: array(&s["commitment"]),
        })
        .collect()
}

fn file_header(h: &Value) -> FileHeader {
    let w = &h["wrapped_dek"];
    FileHeader {
        volume_id: array(&h["volume_id"]),
        file_id: array(&h["file_id"]),
        suite: 1,
        generation: number(&h["generation"]),
        size_floor: number(&h["size_floor"]),
        sealed_size: number(&h["sealed_size"]),
        flags: number(&h["flags"]) as u32,
        commitment: array(&h["commitment"]),
        previous_commitment: array(&h["previous_commitment"]),
        wrapped_dek: (!w.is_null()).then(|| WrappedDek {
            branch_id: array(&w["branch_id"]),
            salt: array(&w["salt"]),
            wrapped: array(&w["wrapped"]),
        }),
        slots: cmk_slots(&h["slots"]),
    }
}

#[test]
fn headers() {
    let v = load("header");
    let (keys, volume) = (file_keys(&v), volume_keys(&v));
    for case in list(&v["headers"]) {
        let name = text(&case["name"]);
        let header = file_header(&case["header"]);
        let geometry = Geometry { header_pages: number(&case["header"]["pages"]) as u32 };
        let origin = case["with_origin"].as_bool().unwrap().then_some(&volume.origin);
        assert_hex(&header.encode(&keys, origin, geometry).unwrap(), &case["slot"], name);
        let parsed = Unverified::parse(&bytes(&case["slot"]), geometry).unwrap();
        assert_eq!(parsed.claims(), &header, "{name}");
        assert_eq!(parsed.verify(&keys, origin), Ok(header), "{name}");
    }
}

#[test]
fn hostile_headers() {
    let v = load("header");
    let (keys, volume) = (file_keys(&v), volume_keys(&v));
    let geometry = Geometry { header_pages: 1 };
    let read = |case: &Value| Unverified::parse(&bytes(&case["slot"]), geometry)?.verify(&keys, Some(&volume.origin));
    for case in list(&v["rejected"]) {
        let got = match read(case) {
            Err(HeaderError::Empty) => "empty",
            Err(HeaderError::Checksum) => "checksum",
            Err(HeaderError::Magic) => "magic",
            Err(HeaderError::Version(_)) => "version",
            Err(HeaderError::Suite(_)) => "suite",
            Err(HeaderError::Malformed(_)) => "malformed",
            Err(HeaderError::Auth) => "auth",
            Err(HeaderError::Origin) => "origin",
            Err(HeaderError::TooLarge { .. }) => "too large",
            Ok(_) => "accepted",
        };
        assert_eq!(got, text(&case["error"]), "{}", text(&case["name"]));
    }
    let first = file_header(&v["headers"][0]["header"]);
    let without_blobs = |mut h: FileHeader| {
        h.slots.iter_mut().for_each(|s| s.blob.clear());
        h
    };
    for case in list(&v["accepted_as_first"]) {
        let got = read(case).unwrap_or_else(|e| panic!("{}: {e}", text(&case["name"])));
        assert_eq!(without_blobs(got), without_blobs(first.clone()), "{}", text(&case["name"]));
    }
}

#[test]
fn wrapped_deks() {
    let v = load("header");
    let w = &v["dek_wrap"];
    let (volume_id, file_id) = (array(&v["volume_id"]), array(&v["file_id"]));
    let (branch_key, dek) = (secret(&v["branch_key"]), secret(&v["dek"]));
    let branch = (array(&w["branch_id"]), &branch_key);
    let sealed = WrappedDek::seal(branch, &volume_id, &file_id, &dek, array(&w["salt"]), array(&w["nonce"]));
    assert_hex(&sealed.wrapped, &w["wrapped"], "wrapped DEK");
    assert_eq!(sealed.open(&branch_key, &volume_id, &file_id).unwrap().expose(), dek.expose());
}

#[test]
fn names() {
    let v = load("name");
    let codec = NameCodec::encrypted(&volume_keys(&v).names);
    let dir = array(&v["dir_id"]);
    let mut long = 0;
    for n in list(&v["names"]) {
        let plain = bytes(&n["plain"]);
        let entry = text(&n["entry"]).as_bytes();
        let encoded = codec.encode(&dir, &plain).unwrap();
        assert_eq!(*encoded.name, *entry);
        match (codec.decode(&dir, entry).unwrap(), encoded.companion) {
            (Decoded::Name(name), None) => assert_eq!(name, plain),
            (Decoded::Long { companion }, Some((name, target))) => {
                long += 1;
                assert_eq!(*companion, *text(&n["companion"]).as_bytes());
                assert_eq!(*name, *companion);
                assert_eq!(*target, *text(&n["companion_target"]).as_bytes());
                assert_eq!(codec.decode_long(&dir, entry, &target), Ok(plain));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(long, 2);
}

#[test]
fn directory_ids() {
    let v = load("dir_id");
    let key = volume_keys(&v).dir_id;
    for r in list(&v["records"]) {
        let record = DirRecord { id: array(&r["id"]), parent: array(&r["parent"]), keys: None };
        let target = text(&r["target"]).as_bytes();
        assert_eq!(record.encode(&key).as_deref(), Ok(target));
        assert_eq!(DirRecord::decode(target, &key), Ok(record));
    }
    for r in list(&v["records_with_keys"]) {
        let name = |k: &Value| KeyRef { provider: text(&k["provider"]).into(), key: text(&k["key_ref"]).into() };
        let keys = Some(list(&r["keys"]).iter().map(name).collect());
        let record = DirRecord { id: array(&r["id"]), parent: array(&r["parent"]), keys };
        let target = text(&r["target"]).as_bytes();
        assert_eq!(record.encode(&key).as_deref(), Ok(target));
        assert_eq!(DirRecord::decode(target, &key), Ok(record));
    }
    for r in list(&v["rejected"]) {
        assert!(DirRecord::decode(text(&r["target"]).as_bytes(), &key).is_err(), "{}", text(&r["name"]));
    }
}

#[test]
fn symlink_targets() {
    let v = load("target");
    let key = volume_keys(&v).targets;
    let mut inline = 0;
    for t in list(&v["targets"]) {
        let (plain, sealed) = (bytes(&t["plain"]), text(&t["sealed"]).as_bytes());
        assert_eq!(small::seal_target(&key, array(&t["id"]), &plain), sealed);
        assert_eq!(small::open_target(&key, sealed).as_ref(), Ok(&plain));
        assert_eq!(small::open_overflow_target(&key, array(&t["id"]), sealed), Ok(plain));
        assert_eq!(small::parse_overflow_link(&key, sealed), Ok(None));
        inline += usize::from(sealed.len() <= small::INLINE_TARGET_MAX);
    }
    assert_eq!(inline, 4);
    let (id, link) = (array(&v["overflow"]["id"]), text(&v["overflow"]["link"]).as_bytes());
    assert_eq!(small::overflow_link(&key, id), link);
    assert_eq!(small::parse_overflow_link(&key, link), Ok(Some(id)));
}

#[test]
fn xattrs() {
    let v = load("xattr");
    let file = XattrCodec::new(&file_keys(&v).xattr_key());
    let object = XattrCodec::for_object(&volume_keys(&v).xattrs, array(&v["object_id"]));
    for (kind, codec) in [("file", file), ("object", object)] {
        for a in list(&v[kind]) {
            let (name, value) = (bytes(&a["plain_name"]), bytes(&a["value"]));
            let backing = text(&a["backing_name"]).as_bytes();
            assert_eq!(codec.name(&name), backing);
            assert!(XattrCodec::is_encoded(backing));
            assert_hex(&codec.seal(&name, &value, array(&a["nonce"])), &a["sealed"], kind);
            assert_eq!(codec.open(backing, &bytes(&a["sealed"])), Ok((name, value)));
        }
    }
}

#[test]
fn sizes() {
    let v = load("size");
    for s in list(&v["sizes"]) {
        let g = Geometry { header_pages: number(&s["header_pages"]) as u32 };
        let (size, blocks) = (number(&s["size"]), number(&s["blocks"]));
        assert_eq!(blocks_for(size), blocks);
        assert_eq!(g.quiet_len(size), number(&s["quiet"]));
        assert_eq!(g.growing_len(blocks), number(&s["growing"]));
        assert_eq!(g.decode(number(&s["quiet"])), Ok(Length::Quiet { size }));
        assert_eq!(g.decode(number(&s["growing"])), Ok(Length::Growing { blocks }));
        assert!(size <= g.max_size());
    }
    for l in list(&v["lengths"]) {
        let g = Geometry { header_pages: number(&l["header_pages"]) as u32 };
        let (length, value) = (number(&l["length"]), number(&l["value"]));
        let expected = match text(&l["is"]) {
            "absent" => Ok(Length::Empty { header: false }),
            "empty" => Ok(Length::Empty { header: true }),
            "quiet" => Ok(Length::Quiet { size: value }),
            "growing" => Ok(Length::Growing { blocks: value }),
            "bad" => Err(BadLength(length)),
            other => panic!("{other}"),
        };
        assert_eq!(g.decode(length), expected, "{length}");
        if let Err(bad) = expected {
            assert_eq!(g.clamp(bad), value, "{length}");
        }
    }
}

#[test]
fn volume_files() {
    let v = load("volume");
    for case in list(&v["volumes"]) {
        let c = &case["config"];
        let keys = VolumeKeys::derive(&array(&c["volume_id"]), &secret(&v["volume_key"]));
        let branch = &c["branch"];
        let branch_record = |b: &Value| BranchRecord {
            id: array(&b["id"]),
            created: b["created"].as_i64().unwrap(),
            slots: cmk_slots(&b["slots"]),
        };
        let directory_cmk = |d: &Value| DirectoryCmk {
            key: KeyRef { provider: text(&d["provider"]).into(), key: text(&d["key_ref"]).into() },
            uri: text(&d["uri"]).into(),
        };
        let some = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let config = VolumeConfig {
            volume_id: array(&c["volume_id"]),
            created: c["created"].as_i64().unwrap(),
            plaintext_names: c["plaintext_names"].as_bool().unwrap(),
            header_pages: number(&c["header_pages"]) as u32,
            key_mode: if text(&c["key_mode"]) == "branch" { KeyMode::Branch } else { KeyMode::PerFile },
            branch_max_age: number(&c["branch_max_age"]),
            branch_max_files: number(&c["branch_max_files"]),
            cmks: list(&c["cmks"]).iter().map(|u| text(u).into()).collect(),
            volume_key: cmk_slots(&c["volume_key"]),
            branch: (!branch.is_null()).then(|| branch_record(branch)),
            directory_cmks: some(&c["directory_cmks"]).iter().map(directory_cmk).collect(),
            directory_branches: some(&c["directory_branches"]).iter().map(branch_record).collect(),
        };
        assert_eq!(String::from_utf8(config.encode(&keys)).unwrap(), text(&case["text"]));
        let parsed = UnverifiedVolume::parse(text(&case["text"]).as_bytes()).unwrap();
        assert_eq!(parsed.verify(&keys), Ok(config));
    }
}

/// Each label that the code uses stands in the specification.
#[test]
fn labels_are_documented() {
    let root = env!("CARGO_MANIFEST_DIR");
    let document = std::fs::read_to_string(format!("{root}/doc/FORMAT.md")).unwrap();
    let mut seen = 0;
    for dir in ["src/crypto", "src/format", "src/keys"] {
        for entry in std::fs::read_dir(format!("{root}/{dir}")).unwrap() {
            let path = entry.unwrap().path();
            if !path.is_file() {
                continue;
            }
            let code = std::fs::read_to_string(&path).unwrap();
            for piece in code.split("b\"envelopefs ").skip(1) {
                let label = format!("envelopefs {}", piece.split('"').next().unwrap());
                assert!(document.contains(&label), "{label} of {} is not in FORMAT.md", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 20, "{seen}");
}
