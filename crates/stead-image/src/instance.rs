//! Images for system containers on Incus and LXD: a metadata tar and a root filesystem.

use crate::{
    error::{IoContext, Result},
    merge::{Merged, Source},
    overlay::{self, LayerParts},
    programs::{self, ProgramParts},
    squashfs::EPOCH,
    store::{Scratch, Store},
    tarball::{Entry, Kind, Writer},
};
use serde::{Deserialize, Serialize};
use std::{fs::File, io, io::BufWriter};
use stead_model::{Digest, Recipe, manifest::InstanceImage, recipe::Base};

/// Result of packing an instance image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceParts {
    /// The image.
    pub image: InstanceImage,
    /// What the user should know about its contents.
    pub warnings: Vec<String>,
}

impl InstanceParts {
    /// Digests of all its blobs.
    pub fn blobs(&self) -> Vec<Digest> {
        let i = &self.image;
        [Some(&i.metadata), Some(&i.rootfs), i.unified.as_ref()]
            .into_iter()
            .flatten()
            .map(|a| a.digest.clone())
            .collect()
    }
}

/// The kernel's name of the architecture, which Incus and LXD use.
fn machine(architecture: &str) -> &str {
    match architecture {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    }
}

/// `metadata.yaml`. JSON is YAML, and quotes what needs quoting.
pub fn metadata_yaml(recipe: &Recipe, architecture: &str) -> String {
    let (os, release) = match &recipe.base {
        Base::Debian(d) => ("Debian", d.suite.as_str()),
        Base::Tar(_) | Base::Oci(_) | Base::Scratch => ("Linux", "custom"),
    };
    let description = recipe.description.clone().unwrap_or_else(|| format!("{os} {release}"));
    let template = |name: &str| serde_json::json!({ "when": ["create", "copy", "rename"], "create_only": false, "template": name, "properties": {} });
    let value = serde_json::json!({
        "architecture": machine(architecture),
        "creation_date": EPOCH,
        "expiry_date": 0,
        "properties": {
            "architecture": architecture,
            "description": description,
            "name": recipe.name.as_str(),
            "os": os,
            "release": release,
            "variant": "default",
        },
        "templates": {
            "/etc/hostname": template("hostname.tpl"),
            "/etc/hosts": template("hosts.tpl"),
        },
    });
    let mut text = serde_json::to_string_pretty(&value).expect("plain data");
    text.push('\n');
    text
}

const HOSTNAME_TEMPLATE: &str = "{{ container.name }}\n";
const HOSTS_TEMPLATE: &str = "127.0.0.1\tlocalhost\n127.0.1.1\t{{ container.name }}\n\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

fn metadata_entries(recipe: &Recipe, architecture: &str) -> Vec<(Entry, Vec<u8>)> {
    let file = |path: &str, text: String| {
        let kind = Kind::File(text.len() as u64);
        (Entry { kind, ..Entry::directory(path.as_bytes(), 0o644) }, text.into_bytes())
    };
    vec![
        file("metadata.yaml", metadata_yaml(recipe, architecture)),
        (Entry::directory(b"templates", 0o755), Vec::new()),
        file("templates/hostname.tpl", HOSTNAME_TEMPLATE.into()),
        file("templates/hosts.tpl", HOSTS_TEMPLATE.into()),
    ]
}

/// Packs metadata and root, and on request both in one tar.
pub(crate) fn pack(
    store: &Store,
    scratch: &Scratch,
    recipe: &Recipe,
    architecture: &str,
    sources: &[Source],
    programs: &[ProgramParts],
    unified: bool,
) -> Result<InstanceParts> {
    let entries = metadata_entries(recipe, architecture);
    let mut metadata = Writer::new(Vec::new(), EPOCH, "");
    for (entry, data) in &entries {
        metadata.put(entry, &mut &data[..]).at("pack", entry.name())?;
    }
    let metadata = store.put(&metadata.finish().at("pack", "metadata")?)?;
    let merged = Merged::of(sources)?;
    crate::space::check(store.dir(), merged.summary().bytes)?;
    let LayerParts { artifact: rootfs, mut warnings } =
        overlay::pack(store, scratch, "rootfs", &merged, sources)?;
    warnings.extend(programs::missing_interpreters(&recipe.programs, programs, |path| Ok(merged.has(path)))?);
    let unified = if unified {
        let path = scratch.path("unified.tar.gz");
        let file = BufWriter::new(File::create(&path).at("make", &path)?);
        // gzip: every version of Incus and LXD reads it. flate2 writes no time into its header.
        let gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        let mut meta = Writer::new(gzip, EPOCH, "");
        for (entry, data) in &entries {
            meta.put(entry, &mut &data[..]).at("write", &path)?;
        }
        let mut root = meta.with_prefix("rootfs/");
        root.put(&Entry::directory(b"", 0o755), &mut io::empty()).at("write", &path)?;
        merged.write(sources, &mut |entry, data| root.put(entry, data))?;
        let gzip = root.finish().at("write", &path)?;
        gzip.finish().and_then(|f| f.into_inner().map_err(|e| e.into_error())).at("write", &path)?;
        Some(store.adopt(&path)?)
    } else {
        None
    };
    Ok(InstanceParts { image: InstanceImage { metadata, rootfs, unified }, warnings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_yaml_with_what_engines_need() {
        let yaml = "name: d12\nkind: instance\ndescription: \"a: b\"\nbase: {debian: {suite: bookworm}}\n";
        let recipe = Recipe::from_yaml("x.yaml", yaml).unwrap();
        let text = metadata_yaml(&recipe, "amd64");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["architecture"], "x86_64");
        assert_eq!(value["creation_date"], EPOCH);
        assert_eq!(value["properties"]["description"], "a: b");
        assert_eq!(value["templates"]["/etc/hostname"]["template"], "hostname.tpl");
    }
}
