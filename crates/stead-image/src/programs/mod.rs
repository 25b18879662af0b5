//! A recipe's programs: from Go modules, addresses or paths into one layer of their own.
//!
//! [`observe`] looks at a source and hashes everything its programs depend on, [`Observed::make`] makes them, [`tree`] lays
//! out the programs of all sources. Names, links and folders belong to the tree: renaming a program does not build it again.

pub mod elf;
pub mod fetch;
pub mod go;
pub mod gomod;

use crate::{
    compression::decompressed,
    digest::Key,
    error::{ImageError, IoContext, Result},
    inputs::Inputs,
    merge::Source,
    store::{Scratch, Store},
    tarball::{self, Entry, Kind, TarError, TarPolicy},
    tools::{Invocation, Stopper, UNSQUASHFS},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use stead_model::{
    Artifact, Digest,
    programs::{Programs, image_path},
};

/// Mode of every program.
const MODE: u32 = 0o755;
/// The largest program that is taken. Kubernetes' in one has 178 MB.
const MAX_PROGRAM_BYTES: u64 = 2 << 30;
/// Number of files of an archive that an error lists.
const SHOWN_FILES: usize = 10;

/// One program in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Name of its file, if the recipe gives it none.
    pub name: String,
    /// The file.
    pub artifact: Artifact,
    /// The loader or interpreter it needs; absent for a static program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
}

/// What one source gives, in the order in which the recipe names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramParts {
    /// The programs.
    pub programs: Vec<Program>,
}

impl ProgramParts {
    /// Every blob of it.
    pub fn blobs(&self) -> Vec<Digest> {
        self.programs.iter().map(|p| p.artifact.digest.clone()).collect()
    }
}

/// A source that was looked at.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    /// Name of its step in the plan.
    pub step: String,
    /// What is done, for people.
    pub what: String,
    /// The program that is run, when there is one.
    pub argv: Vec<String>,
    /// Hash of everything its programs depend on.
    pub inputs: Digest,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Go(Box<go::Module>),
    Download { url: String, run: Invocation, sha256: Digest, members: Vec<String> },
    Files(Vec<PathBuf>),
}

/// Looks at a source.
///
/// # Errors
/// Something it names or needs is missing.
pub(crate) fn observe(programs: &Programs, base_dir: &Path, inputs: &mut Inputs) -> Result<Observed> {
    let step = format!("programs:{}", programs.label());
    if let Some(source) = &programs.go {
        let module = go::Module::observe(source, base_dir, inputs)?;
        let from = match (&source.dir, &source.module, &source.version) {
            (Some(dir), ..) => dir.clone(),
            (_, Some(module), Some(version)) => format!("{module}@{version}"),
            _ => String::new(),
        };
        let what = format!("build {} of Go module {from}", plural(source.packages.len(), "program"));
        return Ok(Observed {
            step,
            what,
            argv: module.argv(),
            inputs: module.inputs.clone(),
            way: Way::Go(Box::new(module)),
        });
    }
    let members: Vec<String> =
        programs.members.iter().map(|m| image_path("", &m.path)[1..].to_owned()).collect();
    let mut key = Key::new("program-files-1");
    key.text(crate::plan::architecture());
    if let (Some(url), Some(sum)) = (&programs.url, &programs.sha256) {
        let sha256: Digest = format!("sha256:{sum}")
            .parse()
            .map_err(|_| ImageError::input("programs: sha256", "is not 64 hexadecimal digits"))?;
        // The address is not part of the key: the digest says what is there.
        key.text("download").text(sha256.as_str()).text(&members.join("\n"));
        if members.is_empty() {
            key.text(programs.label());
        }
        let what = format!("download {url}");
        let run = fetch::invocation(url);
        let argv = run.argv();
        let way = Way::Download { url: url.clone(), run, sha256, members };
        return Ok(Observed { step, what, argv, inputs: key.digest(), way });
    }
    let path = base_dir.join(programs.path.as_deref().unwrap_or_default());
    let files = files_of(&path, &members)?;
    key.text("files");
    for file in &files {
        key.text(&name_of(file)).text(inputs.file(file)?.as_str());
    }
    let what = format!("take {} from {}", plural(files.len(), "program"), path.display());
    Ok(Observed { step, what, argv: Vec::new(), inputs: key.digest(), way: Way::Files(files) })
}

impl Observed {
    /// Makes the programs.
    ///
    /// # Errors
    /// They cannot be built, downloaded or read, or are not for this architecture.
    pub fn make(
        &self,
        store: &Store,
        scratch: &Scratch,
        stopper: &Stopper,
        note: &(dyn Fn(&str) + Sync),
    ) -> Result<ProgramParts> {
        let files = match &self.way {
            Way::Go(module) => module.build(stopper, scratch.dir(), note)?,
            Way::Files(files) => files.clone(),
            Way::Download { url, run, sha256, members } => {
                let to = scratch.path("download");
                fetch::download(stopper, run, url, sha256, fetch::MAX_BYTES, &to, |text| note(text))?;
                if members.is_empty() { vec![to] } else { unpack(&to, url, members, scratch)? }
            }
        };
        let names: Vec<String> = match &self.way {
            Way::Files(files) => files.iter().map(|f| name_of(f)).collect(),
            // The recipe has them.
            _ => vec![String::new(); files.len()],
        };
        let shown = |file: &Path| match &self.way {
            Way::Files(_) => file.display().to_string(),
            Way::Download { url, .. } => url.clone(),
            Way::Go(_) => self.step.clone(),
        };
        let mut programs = Vec::new();
        for (file, name) in files.iter().zip(names) {
            let interpreter = looked_at(file, &shown(file))?;
            let artifact = store.copy_in(file, scratch)?;
            programs.push(Program { name, artifact, interpreter });
        }
        Ok(ProgramParts { programs })
    }
}

/// Checks that a file is a program for this architecture, and gives the interpreter it needs.
fn looked_at(file: &Path, shown: &str) -> Result<Option<String>> {
    let size = fs::metadata(file).at("look at", file)?.len();
    if size > MAX_PROGRAM_BYTES {
        return Err(ImageError::input(shown, format!("has more than {MAX_PROGRAM_BYTES} bytes")));
    }
    let program = elf::program(&fs::read(file).at("read", file)?);
    let ours = std::env::consts::ARCH;
    match &program {
        elf::Program::Other => Err(ImageError::input(
            shown,
            "is neither an ELF program of 64 bits nor a script with its interpreter (#!/…)",
        )),
        elf::Program::Elf { architecture, .. } if *architecture != Some(ours) => {
            let theirs = architecture.unwrap_or("another architecture");
            Err(ImageError::input(shown, format!("is for {theirs}, the image is for {ours}")))
        }
        _ => Ok(program.interpreter().map(str::to_owned)),
    }
}

/// The files of a path: itself, those named, or all executable ones of a folder in the order of their names.
fn files_of(path: &Path, members: &[String]) -> Result<Vec<PathBuf>> {
    let shown = path.display().to_string();
    let meta = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ImageError::input(shown, "does not exist: the \"path\" of programs"));
        }
        meta => meta.at("look at", path)?,
    };
    if meta.is_file() {
        return match members.is_empty() {
            true => Ok(vec![path.to_owned()]),
            false => Err(ImageError::input(shown, "is a file: \"members\" are files of a folder")),
        };
    }
    if !meta.is_dir() {
        return Err(ImageError::input(shown, "is neither a file nor a folder"));
    }
    let mut files = Vec::new();
    for member in members {
        let file = path.join(member);
        if !file.is_file() {
            return Err(ImageError::input(file.display().to_string(), "is not a file: a member of programs"));
        }
        files.push(file);
    }
    if members.is_empty() {
        for entry in fs::read_dir(path).at("list", path)? {
            let file = entry.at("list", path)?.path();
            let runs = |m: fs::Metadata| m.is_file() && m.permissions().mode() & 0o111 != 0;
            if fs::metadata(&file).is_ok_and(runs) {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(ImageError::input(shown, "has no executable file"));
        }
    }
    Ok(files)
}

/// Takes files out of a tar, which is read to its end.
fn unpack(archive: &Path, url: &str, members: &[String], scratch: &Scratch) -> Result<Vec<PathBuf>> {
    let refused = |source| ImageError::Archive { archive: url.to_owned(), source };
    let reader =
        decompressed(File::open(archive).at("open", archive)?).map_err(|e| refused(TarError::Read(e)))?;
    let policy = TarPolicy { merge_usr: false, ..TarPolicy::OVERLAY };
    let mut found: Vec<Option<PathBuf>> = vec![None; members.len()];
    let (mut listed, mut failed) = (BTreeSet::new(), None);
    let walked = tarball::walk(reader, &policy, |entry, data| {
        let name = entry.name();
        if matches!(entry.kind, Kind::File(_)) && entry.mode & 0o111 != 0 && listed.len() < SHOWN_FILES {
            listed.insert(name.clone());
        }
        for (n, _) in members.iter().enumerate().filter(|(_, m)| **m == name) {
            if !matches!(entry.kind, Kind::File(_)) {
                failed = Some(ImageError::input(
                    url,
                    format!("its member {name} is not a file; name the one it leads to"),
                ));
                return Err(TarError::Write(io::Error::other("stopped")));
            }
            let to = scratch.path(&format!("member-{n}"));
            let mut copy = || io::copy(data, &mut File::create(&to)?);
            copy().map_err(TarError::Write)?;
            found[n] = Some(to);
        }
        Ok(())
    });
    if let Some(e) = failed {
        return Err(e);
    }
    walked.map_err(refused)?;
    let take = |(file, member): (Option<PathBuf>, &String)| {
        file.ok_or_else(|| {
            let has = if listed.is_empty() {
                "no executable files".to_owned()
            } else {
                listed.iter().cloned().collect::<Vec<_>>().join(", ")
            };
            ImageError::input(url, format!("has no member {member}; it has {has}"))
        })
    };
    found.into_iter().zip(members).map(take).collect()
}

/// Key of the tree: the keys of the sources, and the names of the programs.
pub(crate) fn tree_key(all: &[Programs], observed: &[Observed]) -> Digest {
    let mut key = Key::new("programs-1");
    for (programs, observed) in all.iter().zip(observed) {
        key.text(observed.inputs.as_str()).text(programs.folder());
        for placed in programs.placed() {
            key.text(placed.name).number(placed.links.len() as u64);
            placed.links.iter().for_each(|link| {
                key.text(link);
            });
        }
    }
    key.digest()
}

/// Each program's absolute path, and those of its links.
fn layout<'a>(all: &'a [Programs], parts: &'a [ProgramParts]) -> Vec<(String, &'a Program, Vec<String>)> {
    let mut out = Vec::new();
    for (programs, parts) in all.iter().zip(parts) {
        let placed = programs.placed();
        for (n, program) in parts.programs.iter().enumerate() {
            let (name, links) = placed.get(n).map_or((&program.name[..], &[][..]), |p| (p.name, p.links));
            let at = |name: &str| image_path(programs.folder(), name);
            out.push((at(name), program, links.iter().map(|l| at(l)).collect()));
        }
    }
    out
}

/// All programs as one tree.
///
/// # Errors
/// Two programs have the same path.
pub(crate) fn tree(store: &Store, all: &[Programs], parts: &[ProgramParts]) -> Result<Source> {
    let mut entries = Vec::new();
    let mut seen = BTreeSet::new();
    let mut put = |path: &str, entry: Entry, blob: Option<PathBuf>| {
        if !seen.insert(path.to_owned()) {
            return Err(ImageError::input("programs", format!("{path} is there twice")));
        }
        entries.push((entry, blob));
        Ok(())
    };
    for (path, program, links) in layout(all, parts) {
        let kind = Kind::File(program.artifact.size.0);
        let entry = Entry { kind, ..Entry::directory(&path.as_bytes()[1..], MODE) };
        put(&path, entry, Some(store.blob(&program.artifact.digest)))?;
        let name = path.rsplit('/').next().unwrap_or_default();
        for link in links {
            let kind = Kind::Symlink(name.as_bytes().to_vec());
            put(&link, Entry { kind, ..Entry::directory(&link.as_bytes()[1..], 0o777) }, None)?;
        }
    }
    Ok(Source::Blobs(entries))
}

/// Warnings about programs whose interpreter is not in the root. `has` says whether a path is.
///
/// # Errors
/// Those of `has`.
pub(crate) fn missing_interpreters(
    all: &[Programs],
    parts: &[ProgramParts],
    mut has: impl FnMut(&str) -> Result<bool>,
) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for (path, program, _) in layout(all, parts) {
        if let Some(interpreter) = &program.interpreter
            && !has(interpreter)?
        {
            out.push(format!("{path} needs {interpreter}, which the image does not have: it will not run"));
        }
    }
    Ok(out)
}

/// Whether one of the squashfs layers has a path, or what it means if `/bin`, `/sbin` and `/lib` are links into `/usr`.
pub(crate) fn in_layers(layers: &[PathBuf], path: &str) -> Result<bool> {
    let names = [path.trim_start_matches('/').to_owned(), image_path("", path)[1..].to_owned()];
    for layer in layers {
        let args = ["-no-progress".into(), "-lc".into(), layer.as_os_str().to_owned()];
        let listed =
            Invocation::new(UNSQUASHFS, args.into_iter().chain(names.iter().map(Into::into))).output()?;
        let listed = String::from_utf8_lossy(&listed);
        let ends =
            |line: &str| names.iter().any(|n| line.strip_suffix(&n[..]).is_some_and(|r| r.ends_with('/')));
        if listed.lines().any(ends) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;
    use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
    use std::{
        collections::BTreeMap,
        io::{Read, Write},
        net::TcpListener,
        sync::Arc,
        thread,
    };
    use stead_model::Failure;

    /// What the server answers at a path: a head, and a body that is repeated for ever when it is asked for.
    type Answers = BTreeMap<&'static str, (String, Vec<u8>, bool)>;

    /// An HTTPS server on loopback whose certificate nobody knows. Ends with the test.
    struct Server {
        address: String,
        certificate: tempfile::NamedTempFile,
    }

    impl Server {
        fn start(mut answers: Answers) -> Self {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
            let certificate = tempfile::NamedTempFile::new().unwrap();
            fs::write(certificate.path(), made.cert.pem()).unwrap();
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
            let config = Arc::new(config);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
            for (head, ..) in answers.values_mut() {
                *head = head.replace("HERE", &address);
            }
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let (config, answers) = (config.clone(), answers.clone());
                    // A client that hangs up is the rule here.
                    thread::spawn(move || answer(config, stream.ok()?, &answers).ok());
                }
            });
            Self { address, certificate }
        }
    }

    fn answer(config: Arc<ServerConfig>, stream: std::net::TcpStream, answers: &Answers) -> io::Result<()> {
        let mut tls = StreamOwned::new(ServerConnection::new(config).map_err(io::Error::other)?, stream);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            tls.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        let request = String::from_utf8_lossy(&request).into_owned();
        let path = request.split_whitespace().nth(1).unwrap_or_default();
        let not_found = ("404 Not Found".to_owned(), Vec::new(), false);
        let (head, body, for_ever) = answers.get(path).unwrap_or(&not_found);
        write!(tls, "HTTP/1.1 {head}\r\nConnection: close\r\n\r\n")?;
        tls.write_all(body)?;
        if *for_ever {
            loop {
                tls.write_all(body)?;
            }
        }
        tls.conn.send_close_notify();
        tls.flush()
    }

    fn archive(entries: &[(&str, u32, &str)]) -> Vec<u8> {
        let mut builder =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (path, mode, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o777);
        header.set_size(0);
        builder.append_link(&mut header, "v1/link", "tool").unwrap();
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn source(yaml: &str) -> Programs {
        let text = format!("name: x\nbase: {{tar: b}}\nprograms: [{yaml}]\n");
        stead_model::Recipe::from_yaml("x.yaml", &text).unwrap().programs.remove(0)
    }

    #[test]
    fn downloads_are_what_was_meant_or_refused() {
        const TEST: &str = "downloads_are_what_was_meant_or_refused";
        if std::process::Command::new("curl").arg("--version").output().is_err() {
            println!("SKIP {TEST}: curl is not installed");
            return;
        }
        let script = "#!/bin/sh\necho hello\n";
        let tar = archive(&[
            ("v1/tool", 0o755, script),
            ("./v1/bin/other", 0o755, "#!/bin/sh\n"),
            ("v1/LICENSE", 0o644, "L"),
        ]);
        let found = |to: &str| (format!("302 Found\r\nLocation: {to}"), Vec::new(), false);
        let ok = |body: &[u8]| ("200 OK".to_owned(), body.to_vec(), false);
        let server = Server::start(BTreeMap::from([
            ("/tool", ok(script.as_bytes())),
            ("/release.tar.gz", ok(&tar)),
            ("/cut.tar.gz", ok(&tar[..tar.len() - 20])),
            ("/moved", found("HERE/tool")),
            ("/plain", found("http://localhost:1/tool")),
            ("/loop", found("HERE/loop")),
            ("/short", (format!("200 OK\r\nContent-Length: {}", script.len() + 5), script.into(), false)),
            ("/endless", ("200 OK".to_owned(), vec![b'x'; 64 << 10], true)),
        ]));
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let trusted = server.certificate.path();
        let get = |path: &str, sha256: &str, keys: &str, trusted: Option<&Path>| {
            let yaml = format!("{{url: \"{}{path}\", sha256: {sha256}{keys}}}", server.address);
            let mut observed = observe(&source(&yaml), dir.path(), &mut Inputs::open(&store, "t")).unwrap();
            let Way::Download { run, .. } = &mut observed.way else { panic!("{observed:?}") };
            run.env.extend([("no_proxy", "*".into())]);
            run.env.extend(trusted.map(|t| ("CURL_CA_BUNDLE", t.into())));
            observed.make(&store, &store.scratch().unwrap(), &Stopper::default(), &|_| ())
        };
        let (of_script, of_tar) = (digest::of_bytes(script.as_bytes()), digest::of_bytes(&tar));
        for path in ["/tool", "/moved"] {
            let made = get(path, of_script.hex(), "", Some(trusted)).unwrap();
            assert_eq!(made.programs[0].artifact.digest, of_script);
            assert_eq!(made.programs[0].interpreter.as_deref(), Some("/bin/sh"));
        }
        let members = ", members: [v1/bin/other, ./v1/tool]";
        let made = get("/release.tar.gz", of_tar.hex(), members, Some(trusted)).unwrap();
        assert_eq!(made.programs[1].artifact.digest, of_script);

        let fails = |path: &str, sha256: &str, keys: &str, trusted, bad_input: bool, expected: &str| {
            let e = get(path, sha256, keys, trusted).unwrap_err();
            let chain = stead_os::chain(&e).to_string();
            assert!(e.is_bad_input() == bad_input && chain.contains(expected), "{path}: {chain}");
        };
        let (script, tar) = (of_script.hex(), of_tar.hex());
        fails(
            "/release.tar.gz",
            script,
            "",
            Some(trusted),
            true,
            &format!("have the SHA-256 {tar}, not {script}"),
        );
        fails("/nothing", script, "", Some(trusted), true, "error: 404");
        fails("/plain", script, "", Some(trusted), false, "leads to an address that is not https");
        fails("/loop", script, "", Some(trusted), false, "Maximum (5) redirects followed");
        fails("/short", script, "", Some(trusted), false, "cannot be downloaded");
        fails("/tool", script, "", None, false, "certificate");
        fails(
            "/release.tar.gz",
            tar,
            ", members: [v1/none]",
            Some(trusted),
            true,
            "no member v1/none; it has v1/bin/other, v1/tool",
        );
        fails("/release.tar.gz", tar, ", members: [v1/link]", Some(trusted), true, "v1/link is not a file");
        fails(
            "/release.tar.gz",
            tar,
            ", members: [v1/LICENSE]",
            Some(trusted),
            true,
            "neither an ELF program",
        );
        let cut = get("/cut.tar.gz", script, members, Some(trusted)).unwrap_err();
        assert!(cut.to_string().contains("SHA-256"), "{cut}");

        // What never ends is ended.
        let url = format!("{}/endless", server.address);
        let run = fetch::invocation(&url).env("CURL_CA_BUNDLE", trusted).env("no_proxy", "*");
        let e = fetch::download(
            &Stopper::default(),
            &run,
            &url,
            &of_script,
            1 << 20,
            &dir.path().join("d"),
            |_| (),
        );
        assert!(e.unwrap_err().to_string().ends_with("has more than 1048576 bytes"));
    }
}
