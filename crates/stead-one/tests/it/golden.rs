//! Documents as OpenNebula writes them, and hostile ones, with the request to the engine for each.

use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path};
use stead_one::{
    document,
    instance::{self, DOCUMENT_KEY, Facts, HostPci},
};

/// A host with a profile `big`, a graphics card, an accelerator and a network card.
fn facts(vm: &document::Vm) -> Facts {
    let pci = |class: &str, graphics, characters: &[&str]| HostPci {
        class: class.into(),
        graphics,
        characters: characters.iter().map(Into::into).collect(),
    };
    let others = vm.disks.iter().map(|d| d.id).chain(vm.context.iter().map(|c| c.disk));
    let mountpoints: BTreeMap<_, _> =
        others.map(|id| (id, format!("/run/stead-one/{}/disk.{id}", vm.name).into())).collect();
    Facts {
        profiles: ["default", "big"].map(str::to_owned).into(),
        pool: "default".into(),
        shiftable: vm.disks.iter().map(|d| d.id).collect(),
        mountpoints,
        pci: [
            ("0000:01:00.0".to_owned(), pci("0x030000", true, &["/dev/dri/card1"])),
            ("0000:02:00.0".to_owned(), pci("0x0b4000", false, &["/dev/qat0", "/dev/qat1"])),
            ("0000:03:00.0".to_owned(), pci("0x020000", false, &[])),
        ]
        .into(),
        ..Facts::default()
    }
}

#[test]
fn documents_become_instances_or_errors() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/documents");
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 40, "{} documents", paths.len());
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let answer = match document::read(&text) {
            Err(error) => json!({ "refused": stead_os::chain(&error) }),
            Ok((vm, kept)) => match instance::wanted(&vm, &kept, &facts(&vm)) {
                Err(error) => json!({ "vm": vm, "refused": stead_os::chain(&error) }),
                Ok((mut wanted, notes)) => {
                    // It is the document itself, packed.
                    assert_eq!(wanted.config.remove(DOCUMENT_KEY), Some(instance::encode(&kept)));
                    json!({
                        "request": format!("POST /1.0/instances {}", wanted.name),
                        "instance": wanted,
                        "notes": notes,
                        "root": vm.root,
                        "disks": vm.disks.iter().map(|d| json!({"id": d.id, "kind": d.kind, "role": d.role})).collect::<Vec<_>>(),
                        "datastore": vm.datastore,
                    })
                }
            },
        };
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name.starts_with("hostile-") && name != "hostile-shell" {
            assert!(answer.get("refused").is_some(), "{name} was accepted: {answer:#}");
        }
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_json_snapshot!(name, answer);
        });
    }
}

#[test]
fn a_large_document_is_refused_before_its_end() {
    use std::io::Read;
    let large = (&b"<VM><ID>7</ID><NAME>"[..]).chain(std::io::repeat(b'x'));
    let error = stead_one::payload::read(large).unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
    // Of the allowed size, but all elements.
    let many = format!("<VM>{}</VM>", "<A/>".repeat(1 << 20));
    assert!(document::read(&many).is_err());
    // Nested as deep as fits.
    let deep = format!("{}{}", "<VM>".repeat(1 << 20), "</VM>".repeat(1 << 20));
    assert!(document::read(&deep).is_err());
}
