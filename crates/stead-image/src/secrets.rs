//! Content that belongs to one machine and not into an image: keys and names that packages generate when they are
//! installed, and private keys from any source.
//!
//! Owns the table of what is left out of a bootstrapped tree and how it is regenerated at boot, and the search for
//! private keys. Keys in the user's own files are reported, never removed.

use crate::tarball::{Entry, Kind};
use std::io::{self, Read};
use stead_model::{Recipe, recipe::Onboot};

/// How an identity that was left out is regenerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// By this command at boot. It does nothing when the files exist.
    AtBoot(&'static [&'static str]),
    /// Its program generates it when it is missing.
    ByItself,
    /// Not at all: the user provides it.
    Never,
}

/// Files that belong to one machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the step or unit that regenerates it.
    pub name: &'static str,
    /// Its files; `*` matches anything within one path component.
    pub files: &'static [&'static str],
    /// How it is regenerated.
    pub renewal: Renewal,
}

/// What Debian's packages generate at installation. The rows with a renewal were tested: built, then regenerated in a
/// chroot. The others are known from the packages' scripts and were not tested.
pub const IDENTITIES: &[Identity] = &[
    Identity {
        name: "ssh-host-keys",
        files: &["etc/ssh/ssh_host_*_key", "etc/ssh/ssh_host_*_key.pub"],
        renewal: Renewal::AtBoot(&["/usr/bin/ssh-keygen", "-A"]),
    },
    Identity {
        name: "snakeoil-certificate",
        files: &["etc/ssl/private/ssl-cert-snakeoil.key", "etc/ssl/certs/ssl-cert-snakeoil.pem"],
        renewal: Renewal::AtBoot(&["/usr/sbin/make-ssl-cert", "generate-default-snakeoil"]),
    },
    Identity {
        name: "dropbear-host-keys",
        files: &["etc/dropbear/dropbear_*_host_key"],
        renewal: Renewal::Never,
    },
    Identity { name: "tinyssh-host-keys", files: &["etc/tinyssh/sshkeydir/*"], renewal: Renewal::Never },
    Identity { name: "rndc-key", files: &["etc/bind/rndc.key"], renewal: Renewal::Never },
    Identity {
        name: "unbound-control-keys",
        files: &["etc/unbound/unbound_control.*", "etc/unbound/unbound_server.*"],
        renewal: Renewal::Never,
    },
    Identity {
        name: "nsd-control-keys",
        files: &["etc/nsd/nsd_control.*", "etc/nsd/nsd_server.*"],
        renewal: Renewal::Never,
    },
    Identity { name: "munge-key", files: &["etc/munge/munge.key"], renewal: Renewal::Never },
    Identity {
        name: "erlang-cookie",
        files: &["var/lib/rabbitmq/.erlang.cookie"],
        renewal: Renewal::ByItself,
    },
    Identity {
        name: "nvme-host",
        files: &["etc/nvme/hostid", "etc/nvme/hostnqn"],
        renewal: Renewal::ByItself,
    },
    Identity {
        name: "systemd-credential-secret",
        files: &["var/lib/systemd/credential.secret"],
        renewal: Renewal::ByItself,
    },
    Identity {
        name: "random-seed",
        files: &["var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "boot/loader/random-seed"],
        renewal: Renewal::ByItself,
    },
    Identity { name: "dbus-machine-id", files: &["var/lib/dbus/machine-id"], renewal: Renewal::ByItself },
];

/// The row that an entry belongs to.
pub fn identity(path: &str, kind: &Kind) -> Option<&'static Identity> {
    if *kind == Kind::Directory {
        return None;
    }
    // Certificates are found through links whose names are hashes of the host name.
    if let Kind::Symlink(target) = kind
        && path.starts_with("etc/ssl/certs/")
        && target.ends_with(b"ssl-cert-snakeoil.pem")
    {
        return IDENTITIES.iter().find(|i| i.name == "snakeoil-certificate");
    }
    IDENTITIES.iter().find(|i| i.files.iter().any(|f| fits(path, f)))
}

fn fits(path: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => path == pattern,
        Some((head, tail)) => path
            .strip_prefix(head)
            .and_then(|rest| rest.strip_suffix(tail))
            .is_some_and(|middle| !middle.is_empty() && !middle.contains('/')),
    }
}

/// The rows of these names, in the table's order.
pub fn named(names: &[String]) -> impl Iterator<Item = &'static Identity> {
    IDENTITIES.iter().filter(|i| names.iter().any(|n| n == i.name))
}

/// Warnings about what a build left out. `renews`: the image is a node's, or has a systemd that runs units at boot.
pub fn warnings(left_out: &[String], renews: bool) -> Vec<String> {
    named(left_out)
        .filter_map(|identity| {
            let why = match identity.renewal {
                Renewal::ByItself => return None,
                Renewal::AtBoot(_) if renews => return None,
                Renewal::AtBoot(command) => {
                    format!("the image has no systemd to run {} at boot", command.join(" "))
                }
                Renewal::Never => "nothing regenerates it at boot".to_owned(),
            };
            Some(format!("/{} belongs to one machine and was left out; {why}", identity.files[0]))
        })
        .collect()
}

/// A node's recipe with the steps that regenerate what was left out of its base, before the recipe's own. A step of the
/// recipe with the same name replaces a generated one.
pub fn with_steps(recipe: &Recipe, left_out: &[String]) -> Recipe {
    let mut recipe = recipe.clone();
    let own = std::mem::take(&mut recipe.system.onboot);
    for identity in named(left_out) {
        if let Renewal::AtBoot(command) = identity.renewal
            && !own.iter().any(|o| o.name == identity.name)
        {
            recipe.system.onboot.push(Onboot {
                name: identity.name.to_owned(),
                command: command.iter().map(|a| (*a).to_owned()).collect(),
                environment: std::collections::BTreeMap::new(),
                timeout_s: None,
            });
        }
    }
    recipe.system.onboot.extend(own);
    recipe
}

/// systemd units that regenerate what was left out of an instance's base, before any service starts that could use it.
pub fn units(left_out: &[String]) -> Vec<(Entry, Vec<u8>)> {
    const UNITS: &str = "usr/lib/systemd/system";
    let mut entries = Vec::new();
    for identity in named(left_out) {
        let Renewal::AtBoot(command) = identity.renewal else { continue };
        let unit = format!("stead-{}.service", identity.name);
        let text = format!(
            "[Unit]\nDescription=Make {} of this machine\nDefaultDependencies=no\n\
             ConditionPathExistsGlob=!/{}\n\
             After=local-fs.target systemd-remount-fs.service\nBefore=sysinit.target shutdown.target\n\
             Conflicts=shutdown.target\n\n\
             [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={}\n",
            identity.name.replace('-', " "),
            identity.files[0],
            command.join(" "),
        )
        .into_bytes();
        let file = Entry {
            kind: Kind::File(text.len() as u64),
            ..Entry::directory(format!("{UNITS}/{unit}").as_bytes(), 0o644)
        };
        let link = Entry {
            kind: Kind::Symlink(format!("../{unit}").into_bytes()),
            ..Entry::directory(format!("{UNITS}/sysinit.target.wants/{unit}").as_bytes(), 0o777)
        };
        entries.extend([(file, text), (link, Vec::new())]);
    }
    entries
}

/// The largest file that is searched for private keys. Keys, bundles and configuration with keys in it are far smaller.
const MAX_SEARCHED_BYTES: u64 = 1 << 20;
/// The smallest file that is searched: an Ed25519 key in PKCS #8, the smallest, has 119 bytes as PEM.
const MIN_KEY_BYTES: u64 = 100;
/// A first line of base64 shorter than this is an example in a text.
const MIN_LINE_BYTES: usize = 40;

/// Passes an entry on; if it holds a private key, a warning is added to `found`.
///
/// # Errors
/// Those of `data` and of `put`.
pub fn inspect(
    entry: &Entry,
    data: &mut dyn Read,
    found: &mut Vec<String>,
    put: &mut dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    match entry.kind {
        Kind::File(len) if (MIN_KEY_BYTES..=MAX_SEARCHED_BYTES).contains(&len) => {
            let mut bytes = Vec::new();
            data.take(len).read_to_end(&mut bytes)?;
            if let Some(kind) = private_key(&bytes) {
                found.push(format!(
                    "/{} holds a private key ({kind}), which everyone with the image can read",
                    entry.name()
                ));
            }
            put(entry, &mut &bytes[..])
        }
        _ => put(entry, data),
    }
}

/// The kind of private key in a file, if any: in PEM, in OpenSSH's or PuTTY's format, or in base64 as in kubeconfigs.
/// Programs and texts that only mention such keys do not count.
pub fn private_key(bytes: &[u8]) -> Option<&'static str> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const KINDS: [(&[u8], &str); 7] = [
        (b"OPENSSH PRIVATE KEY", "OpenSSH"),
        (b"RSA PRIVATE KEY", "RSA"),
        (b"EC PRIVATE KEY", "EC"),
        (b"DSA PRIVATE KEY", "DSA"),
        (b"ENCRYPTED PRIVATE KEY", "encrypted"),
        (b"PRIVATE KEY", "PKCS #8"),
        (b"PGP PRIVATE KEY BLOCK", "PGP"),
    ];
    // `-----BEGIN … PRIVATE KEY-----` in base64, when the key is encoded from its first byte.
    const IN_BASE64: [&[u8]; 4] = [
        b"LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t",
        b"LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tL",
        b"LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0t",
        b"LS0tLS1CRUdJTiBPUEVOU1NIIFBSSVZBVEUgS0VZLS0tLS",
    ];
    if bytes.starts_with(b"PuTTY-User-Key-File-") {
        return Some("PuTTY");
    }
    let mut rest = bytes;
    while let Some(dash) = rest.iter().position(|b| *b == b'-') {
        rest = &rest[dash..];
        if let Some(after) = rest.strip_prefix(BEGIN)
            && let Some((text, kind)) = KINDS.iter().find(|(text, _)| after.starts_with(text))
            && let Some(body) = after[text.len()..].strip_prefix(b"-----")
            && is_body(body)
        {
            return Some(kind);
        }
        // Of a run of dashes, only the last five can begin a header.
        let run = rest.iter().take_while(|b| **b == b'-').count();
        rest = &rest[if run > 5 { run - 5 } else { run }..];
    }
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| *b == b'L') {
        rest = &rest[at..];
        if let Some(key) = IN_BASE64.iter().find(|k| rest.starts_with(k))
            && rest.iter().take_while(|b| is_base64(**b)).count() >= key.len() + MIN_LINE_BYTES
        {
            return Some("in base64");
        }
        rest = &rest[1..];
    }
    None
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)
}

/// Whether a line of key material follows, after headers (`Proc-Type: …`) and empty lines. A line may also end with the
/// escape `\n` of a JSON string.
fn is_body(mut bytes: &[u8]) -> bool {
    for _ in 0..8 {
        let Some(rest) =
            [&b"\r\n"[..], b"\n", b"\\r\\n", b"\\n"].iter().find_map(|end| bytes.strip_prefix(*end))
        else {
            return false;
        };
        let rest = &rest[rest.iter().take_while(|b| **b == b' ' || **b == b'\t').count()..];
        let line = rest.iter().take_while(|b| is_base64(**b)).count();
        if line >= MIN_LINE_BYTES {
            return true;
        }
        // A header, or an empty line.
        let end = rest.iter().take(200).position(|b| *b == b'\n' || *b == b'\\' || *b == b'\r');
        let Some(end) = end else { return false };
        if end > 0 && !rest[..end].contains(&b':') {
            return false;
        }
        bytes = &rest[end..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const LINE: &str = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";

    #[test]
    fn identities_are_known_by_their_paths() {
        let name = |path: &str| identity(path, &Kind::File(1)).map(|i| i.name);
        assert_eq!(name("etc/ssh/ssh_host_ed25519_key"), Some("ssh-host-keys"));
        assert_eq!(name("etc/ssh/ssh_host_ed25519_key.pub"), Some("ssh-host-keys"));
        assert_eq!(name("etc/ssh/ssh_config"), None);
        assert_eq!(name("etc/ssh/ssh_host_a/b_key"), None);
        assert_eq!(name("etc/ssl/private/ssl-cert-snakeoil.key"), Some("snakeoil-certificate"));
        assert_eq!(name("var/lib/systemd/random-seed"), Some("random-seed"));
        assert_eq!(identity("etc/tinyssh/sshkeydir/x", &Kind::Directory), None);
        let link = |target: &str| Kind::Symlink(target.as_bytes().to_vec());
        let hash = identity("etc/ssl/certs/5f8c1a2b.0", &link("ssl-cert-snakeoil.pem"));
        assert_eq!(hash.unwrap().name, "snakeoil-certificate");
        assert_eq!(identity("etc/ssl/certs/5f8c1a2b.0", &link("Some_Root_CA.pem")), None);
    }

    #[test]
    fn what_was_left_out_is_regenerated_at_boot() {
        let yaml = "name: x\nbase: {debian: {suite: trixie}}\nonboot: [{name: mine, command: [/bin/x]}]\n";
        let recipe = Recipe::from_yaml("x.yaml", yaml).unwrap();
        let left_out =
            ["snakeoil-certificate".to_owned(), "ssh-host-keys".to_owned(), "munge-key".to_owned()];
        let names = |r: &Recipe| r.system.onboot.iter().map(|o| o.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&with_steps(&recipe, &left_out)), ["ssh-host-keys", "snakeoil-certificate", "mine"]);
        let own = Recipe::from_yaml("x.yaml", &yaml.replace("mine", "ssh-host-keys")).unwrap();
        assert_eq!(names(&with_steps(&own, &left_out)), ["snakeoil-certificate", "ssh-host-keys"]);
        assert_eq!(with_steps(&recipe, &[]), recipe);
        let units = units(&left_out);
        assert_eq!(units.len(), 4);
        let text = String::from_utf8(units[0].1.clone()).unwrap();
        assert!(text.contains("ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key\n"), "{text}");
        assert!(text.contains("ExecStart=/usr/bin/ssh-keygen -A\n"), "{text}");
        let said = warnings(&left_out, true);
        assert_eq!(
            said,
            ["/etc/munge/munge.key belongs to one machine and was left out; nothing regenerates it at boot"]
        );
        assert_eq!(warnings(&left_out, false).len(), 3);
    }

    #[test]
    fn private_keys_are_found_and_mentions_of_them_are_not() {
        let pem = |kind: &str, body: &str| format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n");
        for (text, expected) in [
            (pem("PRIVATE KEY", LINE), "PKCS #8"),
            (pem("RSA PRIVATE KEY", LINE), "RSA"),
            (pem("RSA PRIVATE KEY", &format!("Proc-Type: 4,ENCRYPTED\nDEK-Info: AES,00\n\n{LINE}")), "RSA"),
            (pem("PGP PRIVATE KEY BLOCK", &format!("Version: 1\n\n{LINE}")), "PGP"),
            (pem("OPENSSH PRIVATE KEY", LINE).replace('\n', "\r\n"), "OpenSSH"),
            (format!("a certificate\n{}{}", pem("CERTIFICATE", LINE), pem("EC PRIVATE KEY", LINE)), "EC"),
            (format!("----------\nkey: |\n  -----BEGIN PRIVATE KEY-----\n  {LINE}\n"), "PKCS #8"),
            (format!("{{\"key\": \"{}\"}}", pem("PRIVATE KEY", LINE).replace('\n', "\\n")), "PKCS #8"),
            ("PuTTY-User-Key-File-2: ssh-rsa\n".to_owned(), "PuTTY"),
            (format!("client-key-data: LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQo{LINE}\n"), "in base64"),
        ] {
            assert_eq!(private_key(text.as_bytes()), Some(expected), "{text}");
        }
        for text in [
            pem("CERTIFICATE", LINE),
            pem("PUBLIC KEY", LINE),
            "-----BEGIN PRIVATE KEY-----\0-----END PRIVATE KEY-----\0%s: not a key\n".to_owned(),
            "if line == \"-----BEGIN RSA PRIVATE KEY-----\":\n    return True\n".to_owned(),
            pem("PRIVATE KEY", "..."),
            pem("PRIVATE KEY", "your key here, in base64 of course, as the form of it demands"),
            "-".repeat(1000),
            "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t".to_owned(),
        ] {
            assert_eq!(private_key(text.as_bytes()), None, "{text}");
        }
    }

    /// Keys made by the programs themselves.
    #[test]
    fn private_keys_of_real_programs_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made =
            Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&path).output();
        if !made.is_ok_and(|out| out.status.success()) {
            println!("SKIP private_keys_of_real_programs_are_found: openssl is not installed");
            return;
        }
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes.len() as u64 >= MIN_KEY_BYTES);
        assert_eq!(private_key(&bytes), Some("PKCS #8"));
    }
}
