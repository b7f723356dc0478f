//! `envelopefs check` on volumes whose keys are at a service; an outage is no damage.

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::aws::{Kms, command, mount, volume};
use crate::common::*;
use crate::fault::Behaviour;
use crate::needs;

const FILES: u64 = 30;

fn check(volume: &Volume, options: &[&str]) -> Output {
    let mut words = vec!["check", "--json"];
    words.extend(options);
    finish(command(volume, &words).arg(&volume.cipher))
}
fn counts(output: &Output) -> Value {
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(output)));
    value["counts"].clone()
}

fn filled(kms: &Kms, options: &[&str]) -> Volume {
    let volume = volume(&[&kms.uri(&kms.key())], options);
    let mount = mount(&volume, "commit=1");
    for n in 0..FILES {
        fs::write(mount.join(format!("file {n}")), n.to_string().repeat(3000)).unwrap();
    }
    mount.unmount();
    volume
}

#[test]
fn a_volume_under_a_remote_cmk_is_checked() {
    needs!(have_mount);
    let Some(kms) = Kms::moto() else { return };
    for options in [&[][..], &["--key-mode", "per-file"]] {
        let volume = filled(&kms, options);
        let clean = check(&volume, &[]);
        assert!(clean.status.success(), "{}", text(&clean));
        let found = counts(&clean);
        assert_eq!((found["files"].as_u64(), found["cmks"][0]["files"].as_u64()), (Some(FILES), Some(FILES)));
        assert_eq!(found["cmks"][0]["unproven"], 0);
        // Without an answer nothing is known, and nothing is called damaged or moved.
        kms.front.set(Behaviour::Close);
        let refused = check(&volume, &["--repair", "--yes"]);
        assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
        let structure = check(&volume, &["--no-keys"]);
        assert!(structure.status.success() && counts(&structure)["damage"] == 0, "{}", text(&structure));
        kms.works();
        assert!(check(&volume, &[]).status.success());
    }
}
