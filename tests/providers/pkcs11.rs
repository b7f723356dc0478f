//! The contract on PKCS#11: SoftHSM's tokens, and the same module with faults put in front of it.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envelopefs::keys::passphrase::PassphraseSource;
use envelopefs::keys::providers::{Opening, open_cmk, open_cmks};
use envelopefs::keys::uri::CmkUri;
use envelopefs::keys::{CmkProvider, KeyError};

use super::contract::{self, Gaps, assert_refused, assert_unreachable, branch};
use super::servers::require;

mod softhsm;

use softhsm::{PIN, Tokens, alone, eventually};

/// Far more than any answer takes here.
const PATIENT: Duration = Duration::from_secs(30);
const HASTY: Duration = Duration::from_millis(300);

const SESSION_HANDLE_INVALID: u32 = 0xb3;
const DEVICE_REMOVED: u32 = 0x32;
const TOKEN_NOT_PRESENT: u32 = 0xe0;
const USER_NOT_LOGGED_IN: u32 = 0x101;
const GENERAL_ERROR: u32 = 0x5;

fn uri(module: &Path, key: &str, pin: &Path) -> CmkUri {
    format!("pkcs11:{key}?module-path={}&pin-source=file:{}", module.display(), pin.display()).parse().unwrap()
}

fn try_open(uri: &CmkUri, timeout: Duration) -> Result<Arc<dyn CmkProvider>, KeyError> {
    // Nobody may be asked: a child of a test has no terminal to ask on.
    open_cmk(uri, &mut Opening::new(&PassphraseSource::Descriptor(-1), timeout))
}

fn open(uri: &CmkUri) -> Arc<dyn CmkProvider> {
    try_open(uri, PATIENT).unwrap()
}

fn config_error<T>(result: Result<T, KeyError>) -> String {
    match result {
        Err(KeyError::Config(text)) => text,
        Ok(_) => panic!("worked"),
        Err(other) => panic!("{other:?}"),
    }
}

fn reason<T>(result: Result<T, KeyError>) -> String {
    match result {
        Err(KeyError::Refused { reason, .. } | KeyError::Unreachable { reason, .. }) => reason,
        Ok(_) => panic!("worked"),
        Err(other) => panic!("{other:?}"),
    }
}

/// Not a test by itself: does in a process of its own what a test asked for.
#[test]
fn another_process() {
    softhsm::act();
}

#[test]
fn a_token_keeps_the_contract() {
    alone("a_token_keeps_the_contract", |tokens| {
        tokens.make_token("one");
        tokens.make_token("other");
        tokens.make_key("one", "first", "1", "a");
        tokens.make_key("one", "second", "2", "b");
        tokens.make_key("other", "first", "1", "c");
        let pin = tokens.pin_file(PIN);
        let at = |key: &str| open(&uri(&tokens.module, key, &pin));
        contract::holds(&|| at("token=one;object=first"), Gaps::default());
        contract::keys_are_apart(&*at("token=one;object=first"), &*at("token=one;object=second"));
        contract::keys_are_apart(&*at("token=one;object=first"), &*at("token=other;object=first"));
    });
}

#[test]
fn one_key_has_one_name() {
    alone("one_key_has_one_name", |tokens| {
        tokens.make_token("my token");
        tokens.make_key("my token", "a/key", "\u{1}z", "a");
        tokens.make_key("my token", "nameless", "", "b");
        let pin = tokens.pin_file(PIN);
        let at = |key: &str| uri(&tokens.module, key, &pin);
        let by_label = at("token=my%20token;object=a%2Fkey");
        let cmk = open(&by_label);
        assert_eq!(cmk.key_ref().to_string(), "pkcs11:token=my%20token;id=%01%7A");
        assert_eq!(open(&at("token=my%20token;id=%01z;type=secret-key")).key_ref(), cmk.key_ref());
        assert_eq!(open(&at("model=SoftHSM%20v2;token=my%20token;id=%01z;object=a%2Fkey")).key_ref(), cmk.key_ref());
        let pinned = by_label.pinned(cmk.key_ref());
        assert!(pinned.to_string().starts_with("pkcs11:token=my%20token;id=%01%7A?"), "{pinned}");
        assert_eq!(open(&pinned).key_ref(), cmk.key_ref());

        let nameless = at("token=my%20token;object=nameless");
        let cmk = open(&nameless);
        assert_eq!(cmk.key_ref().to_string(), "pkcs11:token=my%20token;object=nameless");
        assert_eq!(nameless.pinned(cmk.key_ref()), nameless);
        assert!(cmk.describe().unwrap().description.contains("nameless"));
    });
}

#[test]
fn what_does_not_fit_is_refused_with_what_there_is() {
    alone("what_does_not_fit_is_refused_with_what_there_is", |tokens| {
        tokens.make_token("one");
        tokens.make_token("twin");
        tokens.make_token("twin");
        tokens.make_key("one", "double", "1", "a");
        tokens.make_key("one", "double", "2", "b");
        tokens.make_key("one", "same id", "3", "c");
        tokens.make_key("one", "same id too", "3", "d");
        tokens.elsewhere(&["make", "one", "short", "4", "e", "16"]);
        tokens.elsewhere(&["make-generic", "one", "generic"]);
        tokens.elsewhere(&["make-data", "one", "data"]);
        let pin = tokens.pin_file(PIN);
        let at = |key: &str| try_open(&uri(&tokens.module, key, &pin), PATIENT);
        let text = config_error(at("token=one;object=double"));
        assert!(text.contains("several keys fit") && text.contains("id 31") && text.contains("id 32"), "{text}");
        at("token=one;object=double;id=2").unwrap();
        let text = config_error(at("token=one;id=3"));
        assert!(text.contains("several keys fit") && text.contains("\"same id too\""), "{text}");
        let text = config_error(at("token=one;object=same%20id"));
        assert!(text.contains("give each its own CKA_ID"), "{text}");
        let text = config_error(at("token=one;object=short"));
        assert!(text.contains("AES-128") && text.contains("AES-256 key is needed"), "{text}");
        let text = config_error(at("token=one;object=generic"));
        assert!(text.contains("AES-256 key is needed"), "{text}");
        let text = config_error(at("token=one;object=data"));
        assert!(text.contains("AES-256 key is needed"), "{text}");
        let text = config_error(at("token=twin;object=double"));
        assert!(text.contains("several tokens fit") && text.contains("serial"), "{text}");
        assert_refused(at("token=one;object=missing"), &["no such key", "\"one\""], "missing key");
        assert_unreachable(at("token=missing;object=double"), "missing token");
        let text = reason(at("token=missing;object=double"));
        assert!(text.contains("token \"one\" (serial "), "{text}");

        // A module that is not there, and one that is no module.
        let text = config_error(try_open(&uri(&tokens.file("no.so"), "token=one;id=2", &pin), PATIENT));
        assert!(text.contains("no.so") && !text.contains("pin"), "{text}");
        let text = config_error(try_open(&uri(&tokens.file("conf"), "token=one;id=2", &pin), PATIENT));
        assert!(text.contains("cannot be loaded") && text.contains("module-path="), "{text}");
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    alone("a_wrong_pin_is_tried_once", |tokens| {
        tokens.make_token("one");
        tokens.make_key("one", "key", "1", "a");
        let at = uri(&tokens.faulty(), "token=one;object=key", &tokens.pin_file("wrong"));
        let text = reason(try_open(&at, PATIENT));
        assert!(text.contains("C_Login answered CKR_PIN_INCORRECT") && !text.contains("wrong\n"), "{text}");
        assert_eq!(tokens.calls("C_Login"), 1);
        for _ in 0..3 {
            assert_refused(try_open(&at, PATIENT), &["not offered again"], "the same PIN");
        }
        assert_eq!(tokens.calls("C_Login"), 1);
        // Another PIN is another attempt, and a token that says it is locked is believed.
        tokens.pin_file("other");
        tokens.fail("C_Login", &[0xa4]);
        assert_refused(try_open(&at, PATIENT), &["CKR_PIN_LOCKED"], "locked");
        assert_eq!(tokens.calls("C_Login"), 2);
        tokens.pin_file(PIN);
        let cmk = try_open(&at, PATIENT).unwrap();
        cmk.generate(&branch(1)).unwrap();
        assert_eq!(tokens.calls("C_Login"), 3);
    });
}

#[test]
fn pins_come_from_private_files_or_are_asked_for_once() {
    alone("pins_come_from_private_files_or_are_asked_for_once", |tokens| {
        use std::os::unix::fs::PermissionsExt;
        tokens.make_token("one");
        tokens.make_key("one", "first", "1", "a");
        tokens.make_key("one", "second", "2", "b");
        let module = tokens.faulty();
        let pin = tokens.pin_file(PIN);
        std::fs::set_permissions(&pin, PermissionsExt::from_mode(0o644)).unwrap();
        let text = config_error(try_open(&uri(&module, "token=one;id=1", &pin), PATIENT));
        assert!(text.contains("PIN file") && text.contains("chmod 600") && !text.contains(PIN), "{text}");
        std::fs::write(&pin, "two\nlines\n").unwrap();
        std::fs::set_permissions(&pin, PermissionsExt::from_mode(0o600)).unwrap();
        let text = config_error(try_open(&uri(&module, "token=one;id=1", &pin), PATIENT));
        assert!(text.contains("more than one line") && !text.contains("two"), "{text}");

        // Without a PIN file and without anybody to ask.
        let bare = |id: &str| format!("pkcs11:token=one;id={id}?module-path={}", module.display()).parse().unwrap();
        let text = config_error(open_cmk(&bare("1"), &mut Opening::new(&PassphraseSource::Terminal, PATIENT)));
        assert!(text.contains("pin-source=file:"), "{text}");
        assert_eq!(tokens.calls("C_Login"), 0);

        // A pipe gives the PIN once, and both keys of the token are open.
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, PIN.as_bytes()).unwrap();
        drop(writer);
        let source = PassphraseSource::Descriptor(std::os::fd::AsRawFd::as_raw_fd(&reader));
        let both = open_cmks(&[bare("1"), bare("2")], &mut Opening::new(&source, PATIENT)).unwrap();
        assert_eq!(tokens.calls("C_Login"), 1);
        both[1].generate(&branch(1)).unwrap();
        drop(both);
    });
}

#[test]
fn a_removed_key_is_refused_and_a_restored_one_serves_again() {
    alone("a_removed_key_is_refused_and_a_restored_one_serves_again", |tokens| {
        tokens.make_token("one");
        tokens.make_key("one", "key", "1", "a");
        let at = uri(&tokens.module, "token=one;object=key", &tokens.pin_file(PIN));
        let cmk = open(&at);
        let (key, blob) = cmk.generate(&branch(1)).unwrap();
        tokens.elsewhere(&["remove", "one", "key"]);
        assert_refused(cmk.unwrap(&blob, &branch(1)), &["no such key"], "removed");
        assert_refused(cmk.generate(&branch(1)), &["no such key"], "removed");
        assert_refused(cmk.describe(), &["no such key"], "removed");
        // Under the same id it is the same name; the label may have changed.
        tokens.make_key("one", "restored", "1", "a");
        assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
        cmk.describe().unwrap();
        // Another key under that name opens nothing that the first has wrapped.
        tokens.elsewhere(&["remove", "one", "restored"]);
        tokens.make_key("one", "key", "1", "z");
        contract::assert_bad_blob(cmk.unwrap(&blob, &branch(1)), "another key under the same name");
    });
}

#[test]
fn a_lost_session_is_opened_again_once() {
    alone("a_lost_session_is_opened_again_once", |tokens| {
        tokens.make_token("one");
        tokens.make_key("one", "key", "1", "a");
        let pin = tokens.pin_file(PIN);
        let cmk = open(&uri(&tokens.faulty(), "token=one;object=key", &pin));
        let (key, blob) = cmk.generate(&branch(1)).unwrap();
        for code in [SESSION_HANDLE_INVALID, DEVICE_REMOVED, TOKEN_NOT_PRESENT, USER_NOT_LOGGED_IN] {
            let before = tokens.calls("C_OpenSession");
            tokens.fail("C_DecryptInit", &[code]);
            assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose(), "{code:x}");
            tokens.fail("C_EncryptInit", &[code]);
            cmk.generate(&branch(1)).unwrap();
            assert_eq!(tokens.calls("C_OpenSession"), before + 2);
            tokens.fail("C_DecryptInit", &[code, code]);
            assert_unreachable(cmk.unwrap(&blob, &branch(1)), &format!("{code:x} twice"));
            cmk.unwrap(&blob, &branch(1)).unwrap();
        }
        // The PIN file is gone after the start: the PIN that was good serves on.
        std::fs::remove_file(&pin).unwrap();
        tokens.fail("C_DecryptInit", &[DEVICE_REMOVED]);
        cmk.unwrap(&blob, &branch(1)).unwrap();
        // A file that is there is read anew: a wrong PIN is tried once, and a corrected one heals.
        tokens.pin_file("wrong");
        let before = tokens.calls("C_Login");
        tokens.fail("C_DecryptInit", &[DEVICE_REMOVED]);
        assert_refused(cmk.unwrap(&blob, &branch(1)), &["CKR_PIN_INCORRECT"], "wrong");
        assert_refused(cmk.unwrap(&blob, &branch(1)), &["not offered again"], "still wrong");
        assert_refused(cmk.describe(), &["not offered again"], "still wrong");
        assert_eq!(tokens.calls("C_Login"), before + 1);
        tokens.pin_file(PIN);
        cmk.unwrap(&blob, &branch(1)).unwrap();

        // A device in trouble is no word on the blob; a stumble is none either.
        tokens.fail("C_Decrypt", &[GENERAL_ERROR; 2]);
        assert_unreachable(cmk.unwrap(&blob, &branch(1)), "opens nothing");
        tokens.fail("C_Decrypt", &[GENERAL_ERROR]);
        assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
        // A definite one is believed.
        tokens.fail("C_Decrypt", &[0x40]);
        contract::assert_bad_blob(cmk.unwrap(&blob, &branch(1)), "CKR_ENCRYPTED_DATA_INVALID");
        // The key's owner may turn it off.
        tokens.fail("C_DecryptInit", &[0x68]);
        assert_refused(cmk.unwrap(&blob, &branch(1)), &["CKR_KEY_FUNCTION_NOT_PERMITTED"], "turned off");
        tokens.fail("C_GetSlotList", &[DEVICE_REMOVED; 8]);
        tokens.fail("C_DecryptInit", &[DEVICE_REMOVED]);
        assert_unreachable(cmk.unwrap(&blob, &branch(1)), "no slots");
        std::fs::remove_file(tokens.file("fail-C_GetSlotList")).unwrap();
        cmk.unwrap(&blob, &branch(1)).unwrap();
    });
}

#[test]
fn a_hanging_token_costs_the_time_limit_and_no_more() {
    alone("a_hanging_token_costs_the_time_limit_and_no_more", |tokens: &Tokens| {
        tokens.make_token("one");
        tokens.make_key("one", "key", "1", "a");
        tokens.make_key("one", "other", "2", "b");
        let (module, pin) = (tokens.faulty(), tokens.pin_file(PIN));
        tokens.hang("C_Initialize");
        assert_unreachable(try_open(&uri(&module, "token=one;id=1", &pin), HASTY), "the module does not start");
        tokens.release("C_Initialize");
        let cmk = eventually(|| try_open(&uri(&module, "token=one;id=1", &pin), Duration::from_secs(2)));
        let other = open(&uri(&module, "token=one;id=2", &pin));
        let (key, blob) = cmk.generate(&branch(1)).unwrap();

        tokens.hang("C_Decrypt");
        let start = Instant::now();
        assert!(reason(cmk.unwrap(&blob, &branch(1))).contains("did not answer in time"));
        assert!(start.elapsed() < PATIENT);
        // The call is still in there; nobody else waits for it, and other keys go on.
        let start = Instant::now();
        for _ in 0..20 {
            assert!(reason(cmk.generate(&branch(1))).contains("earlier call"));
        }
        assert!(start.elapsed() < Duration::from_secs(1));
        other.generate(&branch(1)).unwrap();
        tokens.release("C_Decrypt");
        assert_eq!(eventually(|| cmk.unwrap(&blob, &branch(1))).expose(), key.expose());
    });
}

#[test]
fn a_key_that_can_leave_its_token_is_warned_of() {
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    struct Seer;
    impl log::Log for Seer {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            SEEN.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }
        fn flush(&self) {}
    }
    alone("a_key_that_can_leave_its_token_is_warned_of", |tokens| {
        tokens.make_token("one");
        tokens.make_key("one", "sealed", "1", "a");
        tokens.elsewhere(&["make-extractable", "one", "loose", "2", "b"]);
        let pin = tokens.pin_file(PIN);
        log::set_logger(&Seer).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        let warnings = || SEEN.lock().unwrap().iter().filter(|line| line.starts_with("WARN")).count();
        let sealed = open(&uri(&tokens.module, "token=one;object=sealed", &pin));
        assert_eq!(warnings(), 0);
        let loose = open(&uri(&tokens.module, "token=one;object=loose", &pin));
        assert_eq!(warnings(), 1);
        assert!(loose.describe().unwrap().description.contains("can be read out"));
        assert!(!sealed.describe().unwrap().description.contains("can be read out"));
        loose.generate(&branch(1)).unwrap();
        let seen = SEEN.lock().unwrap().join("\n");
        assert!(seen.contains("pkcs11:token=one;id=%32: the key can be read out of its token"), "{seen}");
        assert!(!seen.contains(PIN), "{seen}");
        // A process may end with a key open.
        std::mem::forget(loose);
    });
}

#[test]
fn without_a_module_the_system_is_asked() {
    let proxies = ["p11-kit-proxy.so", "libp11-kit.so.0"];
    let directories = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let proxy = directories.iter().flat_map(|dir| proxies.map(|name| Path::new(dir).join(name))).find(|p| p.exists());
    if require("p11-kit's proxy module", proxy).is_none() {
        return;
    }
    alone("without_a_module_the_system_is_asked", |tokens| {
        tokens.make_token("one");
        tokens.make_key("one", "key", "1", "a");
        let pin = tokens.pin_file(PIN);
        let at = format!("pkcs11:token=one;object=key?pin-source=file:{}", pin.display()).parse().unwrap();
        contract::holds(&|| open(&at), Gaps::default());
    });
}
