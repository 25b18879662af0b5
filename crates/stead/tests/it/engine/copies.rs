//! Copies between servers. Both ends are the same cluster, which the engines do not notice: each side knows the other
//! only by address, certificate and secrets.

use super::real::remove;
use stead_incus::{
    Source,
    client::{FileKind, OnServer},
    requests::{
        files::{Attributes, NewFile},
        instances::{NewInstance, StateAction},
        migration::{CopyOptions, Mode},
        projects,
    },
    types::Config,
};
use stead_testkit::{
    body::{Env, Group},
    wait::SOON,
};

pub const COPIES: Group = ("copies", |env| Box::pin(copies(env)));

async fn copies(env: &Env) {
    let c = &env.client;
    let [first, second] = &env.members;
    let shared = Config::from([("features.profiles".to_owned(), "false".to_owned())]);
    c.send(&projects::create("stead-z", &shared, "")).await.unwrap();
    let new = NewInstance::of_image("stead-s1", "stead-tiny");
    c.create_instance("default", Some(first), &new).await.unwrap();
    let write = async |text: &'static str| {
        let file = NewFile::File(Source::Bytes(text.into()));
        c.write_file("default", "stead-s1", "/root/mark", &file, Attributes::default()).await.unwrap();
    };
    write("one").await;
    c.create_snapshot("default", "stead-s1", "snap", false).await.unwrap();
    let original = c.instance("default", "stead-s1").await.unwrap().value;
    let from = OnServer { client: c, project: "default" };
    let mark = async |name: &str| c.read_file("stead-z", name, "/root/mark", 100).await.map(|f| f.kind);
    for (mode, name) in [(Mode::Pull, "pulled"), (Mode::Push, "pushed"), (Mode::Relay, "relayed")] {
        let new = NewInstance { name: name.into(), ..NewInstance::like(&original) };
        let copy = async |options| {
            c.copy_instance("stead-z", Some(second), &new, from, "stead-s1", mode, options).await
        };
        copy(CopyOptions::default()).await.unwrap_or_else(|e| panic!("{mode:?}: {e:?}"));
        let there = c.instance("stead-z", name).await.unwrap().value;
        assert_eq!(&there.location, second, "{mode:?}");
        assert_eq!(c.snapshots("stead-z", name).await.unwrap().len(), 1, "{mode:?}");
        assert_eq!(mark(name).await.unwrap(), FileKind::File("one".into()), "{mode:?}");
        // It runs, so its files have the right owners.
        if env.starts {
            c.set_instance_state("stead-z", name, StateAction::Start, SOON).await.unwrap();
            c.set_instance_state("stead-z", name, StateAction::Kill, SOON).await.unwrap();
        }

        write("two").await;
        let refresh = CopyOptions { refresh: true, ..CopyOptions::default() };
        copy(refresh).await.unwrap_or_else(|e| panic!("refresh, {mode:?}: {e:?}"));
        assert_eq!(mark(name).await.unwrap(), FileKind::File("two".into()), "{mode:?}");
        write("one").await;
        c.delete_instance("stead-z", name).await.unwrap();
    }
    // A private image, copied by the server itself with a secret.
    let own = Config::new();
    c.send(&projects::create("stead-w", &own, "")).await.unwrap();
    let fingerprint = c.image_alias("default", "stead-tiny").await.unwrap().value.target;
    c.copy_image("stead-w", from, &fingerprint, &["stead/copied"]).await.unwrap();
    let copied = c.image("stead-w", &fingerprint).await.unwrap().value;
    assert!(!copied.public && copied.aliases.iter().any(|a| a.name == "stead/copied"));
    c.delete_image("stead-w", &fingerprint).await.unwrap();
    c.send(&projects::delete("stead-w")).await.unwrap();

    // A missing instance cannot be copied, and the attempt leaves nothing behind.
    let new = NewInstance { name: "nothing".into(), ..NewInstance::like(&original) };
    let missing =
        c.copy_instance("stead-z", None, &new, from, "stead-never", Mode::Pull, CopyOptions::default()).await;
    assert!(missing.unwrap_err().is_not_found());
    assert!(c.instance("stead-z", "nothing").await.unwrap_err().is_not_found());
    remove(c, "stead-s1").await;
    for image in c.images("stead-z").await.unwrap() {
        c.delete_image("stead-z", &image.fingerprint).await.unwrap();
    }
    c.send(&projects::delete("stead-z")).await.unwrap();
}
