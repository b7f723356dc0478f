//! Hosts of their own (network namespaces) whose volumes hang on keys of one service: one key switched off cuts off one host.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{Mount, Volume, assert_errno, binary, eventually, finish, scratch, text, tool};
use crate::needs;
use crate::own::{ACCOUNT, Own, REGION};
use crate::sigv4::Credentials;

/// How often a mount asks whether its key is still good, and what the way there and a loaded machine may add.
const INTERVAL: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(8);

/// A host with the service and two hosts with nothing but a wire to it.
struct Network {
    names: [String; 3],
}

/// Addresses of the service's end and of the host's end of a wire.
fn addresses(host: usize) -> [String; 2] {
    [1, 2].map(|end| format!("10.77.{host}.{end}"))
}

fn ip(arguments: &[&str]) {
    tool("ip", arguments);
}

impl Network {
    fn new() -> Self {
        let id = std::process::id() % 100_000;
        let network = Self { names: ["s", "a", "b"].map(|host| format!("envelopefs-{id}{host}")) };
        for name in &network.names {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        let service = &network.names[0];
        for (n, host) in network.names.iter().enumerate().skip(1) {
            let [near, far] = [format!("ef{n}s"), format!("ef{n}h")];
            ip(&["-n", service, "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", host]);
            let [service_end, host_end] = addresses(n);
            for (name, device, address) in [(service, &near, service_end), (host, &far, host_end)] {
                ip(&["-n", name, "address", "add", &format!("{address}/30"), "dev", device]);
                ip(&["-n", name, "link", "set", device, "up"]);
            }
        }
        network
    }
    /// A command on one of the hosts; the file system stays this one's.
    fn on(&self, host: usize, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.names[host])).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status();
        }
    }
}

fn have_namespaces() -> bool {
    let usable = Command::new("ip").args(["netns", "list"]).output().is_ok_and(|output| output.status.success());
    let usable = usable && Path::new("/usr/bin/nsenter").exists();
    crate::servers::require("ip (iproute2)", usable.then(PathBuf::new)).is_some()
}

/// A CA, and from it a certificate of the service's addresses: files `ca.pem`, `tls.pem`, `tls.key`.
fn certificates(directory: &Path) {
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    run(&[&new[..], &["-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.pem"]].concat());
    let names = format!("subjectAltName=IP:{},IP:{}", addresses(1)[0], addresses(2)[0]);
    let signed =
        ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", &names];
    run(&[&new[..], &["-subj", "/CN=kms", "-keyout", "tls.key", "-out", "tls.pem"], &signed[..]].concat());
}

struct Host<'a> {
    network: &'a Network,
    number: usize,
    who: Credentials,
    ca: PathBuf,
}

impl Host<'_> {
    fn command(&self, volume: &Volume, arguments: &[&str]) -> Command {
        let mut command = self.network.on(self.number, &binary());
        command
            .args(arguments)
            .env("ENVELOPEFS_CONFIG_DIR", &volume.config)
            .env("ENVELOPEFS_RUNTIME_DIR", volume.scratch().join("run"))
            .env("HOME", volume.scratch())
            .env("AWS_ACCESS_KEY_ID", &self.who.id)
            .env("AWS_SECRET_ACCESS_KEY", &self.who.secret)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CA_BUNDLE", &self.ca);
        command
    }
    fn volume(&self, key: &str, port: u16) -> Volume {
        let volume = Volume::unmade(None);
        let uri = format!("awskms:///{key}?region={REGION}&endpoint=https://{}:{port}", addresses(self.number)[0]);
        let output = finish(self.command(&volume, &["init", "--cmk", &uri]).arg(&volume.cipher));
        assert!(output.status.success(), "{}", text(&output));
        volume
    }
    fn mount(&self, volume: &Volume) -> Mount {
        let options = format!("kms_deadline=2s,kms_revalidate={}s,commit=5", INTERVAL.as_secs());
        let mut command = self.command(volume, &["mount", "--foreground", "-o", &options]);
        command.arg(&volume.cipher).arg(&volume.mountpoint);
        Mount::wait_until_up(volume, &volume.mountpoint, command)
    }
}

fn file(mount: &Mount) -> File {
    File::options().create(true).read(true).write(true).truncate(true).open(mount.join("f")).unwrap()
}

/// The console's policy for one user of the key: administration stays with the account.
fn policy_for(user: &str) -> String {
    let principal = |name: &str| json!({"AWS": format!("arn:aws:iam::{ACCOUNT}:{name}")});
    json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": principal("root"), "Action": "kms:*", "Resource": "*"},
        {"Effect": "Allow", "Principal": principal(&format!("user/{user}")), "Resource": "*",
            "Action": ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]},
    ]})
    .to_string()
}

#[test]
fn a_disabled_key_cuts_off_its_host_and_no_other() {
    needs!(have_root, have_mount);
    if !have_namespaces() {
        return;
    }
    let network = Network::new();
    let directory = scratch();
    certificates(directory.path());
    let at = |name: &str| directory.path().join(name);
    let mut own = Own::made_in(directory.path());
    let mut command = network.on(0, &binary());
    command.args(["kms", "serve", "--listen", &format!("0.0.0.0:{}", own.port), "--tls-cert"]);
    command.arg(at("tls.pem")).arg("--tls-key").arg(at("tls.key"));
    own.serve_by(&mut command, |own| own.log().contains("answers at"));

    let hosts = ["hosta", "hostb"].iter().enumerate();
    let hosts: Vec<Host> = hosts
        .map(|(n, name)| Host { network: &network, number: n + 1, who: own.user(name), ca: at("ca.pem") })
        .collect();
    // Over the service's own socket: no host but these reaches it.
    let keys = ["hosta", "hostb"].map(|user| {
        let made = own.verb_call("CreateKey", &json!({"Description": user, "Policy": policy_for(user)}));
        made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    });
    let (a, b) = (hosts[0].volume(&keys[0], own.port), hosts[1].volume(&keys[1], own.port));
    // Neither may use the other's key.
    let stolen = Volume::unmade(None);
    let uri = format!("awskms:///{}?region={REGION}&endpoint=https://{}:{}", keys[1], addresses(1)[0], own.port);
    let output = finish(hosts[0].command(&stolen, &["init", "--cmk", &uri]).arg(&stolen.cipher));
    assert!(!output.status.success() && text(&output).contains("AccessDenied"), "{}", text(&output));

    let (mounted_a, mounted_b) = (hosts[0].mount(&a), hosts[1].mount(&b));
    let (of_a, of_b) = (file(&mounted_a), file(&mounted_b));
    let mut back = [0; 7];
    of_a.write_all_at(b"host a!", 0).unwrap();
    of_a.sync_all().unwrap();

    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Files are made, written, read and opened all the time: keys in memory and keys to be asked for.
            while !over.load(Ordering::Relaxed) {
                let n = rounds.fetch_add(1, Ordering::Relaxed);
                of_b.write_all_at(&n.to_le_bytes(), 0).unwrap();
                of_b.sync_data().unwrap();
                let name = mounted_b.join(format!("n{}", n % 50));
                fs::write(&name, n.to_string()).unwrap();
                assert_eq!(fs::read_to_string(&name).unwrap(), n.to_string());
            }
        });
        let start = Instant::now();
        own.verb_call("DisableKey", &json!({"KeyId": keys[0]}));
        eventually("host a is cut off", || of_a.read_exact_at(&mut back, 0).is_err());
        assert!(start.elapsed() < INTERVAL + SLACK, "{:?}", start.elapsed());
        assert_errno(of_a.read_exact_at(&mut back, 0), libc::EKEYREVOKED);
        assert_errno(File::create(mounted_a.join("new")), libc::EKEYREVOKED);
        let before = rounds.load(Ordering::Relaxed);
        std::thread::sleep(3 * INTERVAL);
        assert!(rounds.load(Ordering::Relaxed) > before, "host b stands still");
        own.verb_call("EnableKey", &json!({"KeyId": keys[0]}));
        eventually("host a is back", || of_a.read_exact_at(&mut back, 0).is_ok());
        assert_eq!(&back, b"host a!");
        over.store(true, Ordering::Relaxed);
    });
    assert!(!mounted_b.log().contains("code=kms-refused"), "{}", mounted_b.log());
    drop((of_a, of_b));
    mounted_a.unmount();
    mounted_b.unmount();
}
