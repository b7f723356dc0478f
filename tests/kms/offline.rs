//! Commands on a volume whose keys are at a key service: `cat`, `export`, both without the volume file, `mount --create`.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::aws::{Kms, command, mount, volume};
use crate::common::{Volume, finish, text};
use crate::needs;

const CONTENT: &[u8] = b"kept at a key service";

fn run(volume: &Volume, command_and_options: &[&str], paths: &[&Path]) -> Output {
    let output = finish(command(volume, command_and_options).args(paths));
    assert!(output.status.success(), "{command_and_options:?}: {}", text(&output));
    output
}

/// Under either key mode, with an attribute, whose key has to be fetched as well.
#[test]
fn cat_and_export_fetch_the_keys_that_they_need() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        for mode in ["branch", "per-file"] {
            let uri = kms.uri(&kms.key());
            let volume = volume(&[&uri], &["--key-mode", mode]);
            let mounted = mount(&volume, "commit=5");
            fs::create_dir(mounted.join("d")).unwrap();
            for file in ["one", "d/two"] {
                fs::write(mounted.join(file), CONTENT).unwrap();
                let value = b"value";
                rustix::fs::setxattr(mounted.join(file), "user.a", value, rustix::fs::XattrFlags::empty()).unwrap();
            }
            mounted.unmount();

            let cat = run(&volume, &["cat"], &[&volume.cipher, Path::new("d/two")]);
            assert_eq!(cat.stdout, CONTENT, "{mode}");
            let export = volume.scratch().join("export");
            run(&volume, &["export"], &[&volume.cipher, &export]);
            for file in ["one", "d/two"] {
                assert_eq!(fs::read(export.join(file)).unwrap(), CONTENT, "{mode}");
            }

            // Names are lost with the volume file, content is not.
            fs::remove_file(volume.cipher.join("envelopefs.toml")).unwrap();
            let raw = volume.scratch().join("raw");
            run(&volume, &["export", "--cmk", &uri], &[&volume.cipher, &raw]);
            let (mut found, mut dirs) = (Vec::new(), vec![raw]);
            while let Some(dir) = dirs.pop() {
                for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                    match entry.file_type().unwrap() {
                        kind if kind.is_dir() => dirs.push(entry.path()),
                        kind if kind.is_file() => found.push(entry.path()),
                        _ => {}
                    }
                }
            }
            let contents: Vec<_> = found.iter().map(|path| fs::read(path).unwrap()).collect();
            assert_eq!(contents, [CONTENT, CONTENT], "{mode}: {found:?}");
        }
    }
}

/// The one command, with the volume made under a key service, and the daemon in the background.
#[test]
fn a_volume_is_made_and_mounted_in_one_command() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let uri = kms.uri(&kms.key());
        // For its credentials file; the volume itself is another one.
        let home = volume(&[&uri], &[]);
        let (cipher, mountpoint) = (home.scratch().join("made"), home.scratch().join("made-mnt"));
        run(&home, &["mount", "--create", "--cmk", &uri], &[&cipher, &mountpoint]);
        fs::write(mountpoint.join("file"), CONTENT).unwrap();
        run(&home, &["umount"], &[&mountpoint]);
        assert_eq!(run(&home, &["cat"], &[&cipher, Path::new("file")]).stdout, CONTENT);
    }
}
