//! A file that somebody planted who may wrap keys under the CMK but has never had the volume's own key: for an asymmetric
//! CMK that is everybody who holds its public half.

use std::fs;
use std::path::PathBuf;

use envelopefs::crypto::secret::Secret32;
use envelopefs::format::block;
use envelopefs::format::geometry::{Geometry, PAGE, PLAIN};
use envelopefs::format::volume::UnverifiedVolume;
use envelopefs::keys::guard::{Guard, OutagePolicy};
use envelopefs::keys::keyring::{KeyPolicy, Keyring};
use envelopefs::keys::passphrase::PassphraseSource;
use envelopefs::keys::providers::{Opening, open_cmk};
use envelopefs::keys::uri::CmkUri;

use crate::aws::{CREDENTIALS, Kms, credentials_file, mount, volume};
use crate::common::{assert_errno, walk};
use crate::needs;
use crate::servers::in_own_process;

const URI: &str = "ENVELOPEFS_TEST_PLANT_URI";
const CIPHER: &str = "ENVELOPEFS_TEST_PLANT_CIPHER";
const FILE: &str = "ENVELOPEFS_TEST_PLANT_FILE";

/// Writes a file of the volume in `CIPHER` over `FILE`, with everything right but the origin: its keys are wrapped under the
/// volume's own CMK and context, its blocks sealed, its header authenticated by them.
fn plant() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let text = fs::read(PathBuf::from(variable(CIPHER)).join("envelopefs.toml")).unwrap();
    let claims = UnverifiedVolume::parse(&text).unwrap().claims().clone();
    let passphrase = PassphraseSource::Terminal;
    let outage = OutagePolicy::default();
    let cmk =
        open_cmk(&CmkUri::parse(&variable(URI)).unwrap(), &mut Opening::new(&passphrase, outage.deadline)).unwrap();
    let policy = KeyPolicy {
        mode: claims.key_mode,
        branch_max_age: claims.branch_max_age,
        branch_max_files: claims.branch_max_files,
    };
    // An origin key of his own, since he does not have the volume's.
    let keyring = Keyring::new(claims.volume_id, vec![Guard::new(cmk, outage)], policy, Some(Secret32::random()), None);
    let new = keyring.patiently(|| keyring.create(&None)).unwrap();
    let geometry = Geometry { header_pages: claims.header_pages };
    let mut header = new.header(claims.volume_id);
    header.size_floor = 11;
    let slot = header.encode(&new.keys, keyring.origin(), geometry).unwrap();
    let mut page = [0; PAGE];
    page[PAGE - PLAIN..][..11].copy_from_slice(b"forged text");
    let salt = [1, 2, 3, 4];
    block::seal(&new.keys.block_key(salt), salt, &[5; 12], 0, 11, &mut page);
    let mut file = slot;
    file.resize(geometry.data_start() as usize, 0);
    file.extend_from_slice(&page);
    file.resize(usize::try_from(geometry.quiet_len(11)).unwrap(), 0);
    fs::write(variable(FILE), file).unwrap();
}

#[test]
fn a_file_planted_under_a_public_key_cmk_is_refused_by_its_origin() {
    if std::env::var_os(URI).is_some() {
        return in_own_process(
            "planted::a_file_planted_under_a_public_key_cmk_is_refused_by_its_origin",
            no_kms,
            plant,
        );
    }
    needs!(have_mount);
    for kms in Kms::and_own(Kms::ministack) {
        let key = kms.key_of("RSA_2048");
        let uri = format!("{}&algorithm=rsa", kms.uri(&key));
        let volume = volume(&[&uri], &[]);
        let mounted = mount(&volume, "commit=5");
        fs::write(mounted.join("good"), "good").unwrap();
        fs::write(mounted.join("victim"), "the truth").unwrap();
        let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(mounted.join("victim")).unwrap());
        mounted.unmount();
        let victim = volume.backing_of(ino);
        assert!(walk(&volume.cipher).contains(&victim));

        let environment = || {
            let mut all: Vec<(String, String)> = CREDENTIALS.map(|(name, value)| (name.into(), value.into())).to_vec();
            all.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
            let profiles = credentials_file(&volume).display().to_string();
            all.push(("AWS_SHARED_CREDENTIALS_FILE".into(), profiles));
            all.push((URI.into(), uri.clone()));
            all.push((CIPHER.into(), volume.cipher.display().to_string()));
            all.push((FILE.into(), victim.display().to_string()));
            Some(((), all))
        };
        let name = "planted::a_file_planted_under_a_public_key_cmk_is_refused_by_its_origin";
        in_own_process(name, environment, || unreachable!("the other process plants"));

        let mounted = mount(&volume, "commit=5");
        assert_errno(fs::read(mounted.join("victim")), libc::EIO);
        let log = mounted.log();
        assert!(log.contains("origin"), "{log}");
        assert_eq!(fs::read_to_string(mounted.join("good")).unwrap(), "good");
        // It can be emptied and removed like any broken file.
        fs::write(mounted.join("victim"), "again").unwrap();
        assert_eq!(fs::read_to_string(mounted.join("victim")).unwrap(), "again");
        mounted.unmount();
    }
}

type Prepared = Option<((), Vec<(String, String)>)>;

fn no_kms() -> Prepared {
    None
}
