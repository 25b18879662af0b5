use super::{code, node};
use std::{fs, io::Write, time::Duration};
use stead_agent::Chunks;
use stead_model::Failure;
use stead_testkit::wait::eventually_async;

async fn text(mut chunks: Chunks) -> String {
    let mut out = Vec::new();
    while let Some(chunk) = chunks.next_chunk().await.unwrap() {
        out.extend_from_slice(&chunk);
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn whole_logs_and_last_lines() {
    let node = node().await;
    let dir = node.handle.log_dir();
    fs::write(dir.join("node.log"), "a\nb\nc\n").unwrap();
    fs::write(dir.join("incusd.log.1"), "1\n2\n").unwrap();
    fs::write(dir.join("incusd.log"), "3\n").unwrap();
    assert_eq!(text(node.client.logs(None, None, false).await.unwrap()).await, "a\nb\nc\n");
    assert_eq!(text(node.client.logs(Some("node"), Some(2), false).await.unwrap()).await, "b\nc\n");
    assert_eq!(text(node.client.logs(Some("incusd"), Some(2), false).await.unwrap()).await, "2\n3\n");
    let long: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
    fs::write(dir.join("node.log"), &long).unwrap();
    assert_eq!(text(node.client.logs(None, None, false).await.unwrap()).await, long);
}

#[tokio::test]
async fn only_services_have_logs() {
    let node = node().await;
    fs::write(node.handle.log_dir().join("ntp.log"), "").unwrap();
    fs::write(node.dir.path().join("secret.log"), "secret").unwrap();
    for name in ["nosuch", "../secret", "", "/etc/passwd", "ntp.log", "ntp.log.1", "."] {
        let error = node.client.logs(Some(name), None, false).await.unwrap_err();
        assert_eq!(code(&error), 404, "{name:?}");
        assert_eq!(error.hint().as_deref(), Some("logs: node, ntp"));
    }
}

#[tokio::test]
async fn followed_across_rotation() {
    let node = node().await;
    let (log, rotated) = (node.handle.log_dir().join("s.log"), node.handle.log_dir().join("s.log.1"));
    fs::write(&log, "old\nlast\n").unwrap();
    let mut chunks = node.client.logs(Some("s"), Some(1), true).await.unwrap();
    let mut seen = String::new();
    let mut wait_for = async |want: &str| {
        while seen != want {
            assert!(want.starts_with(&seen), "{seen:?} is not a prefix of {want:?}");
            let chunk = tokio::time::timeout(Duration::from_secs(60), chunks.next_chunk()).await;
            let Ok(chunk) = chunk else { panic!("{seen:?} instead of {want:?}") };
            seen.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
        }
    };
    wait_for("last\n").await;
    let mut writer = fs::OpenOptions::new().append(true).open(&log).unwrap();
    writer.write_all(b"one\n").unwrap();
    wait_for("last\none\n").await;
    writer.write_all(b"two\n").unwrap();
    fs::rename(&log, &rotated).unwrap();
    fs::write(&log, "three\n").unwrap();
    wait_for("last\none\ntwo\nthree\n").await;
}

#[tokio::test]
async fn a_follower_that_leaves_is_forgotten() {
    let node = node().await;
    let log = node.handle.log_dir().join("node.log");
    fs::write(&log, "x\n").unwrap();
    let held = || {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == log)).count()
    };
    let mut chunks = node.client.logs(None, None, true).await.unwrap();
    assert!(chunks.next_chunk().await.unwrap().is_some());
    assert!(held() > 0);
    drop(chunks);
    eventually_async("the log is closed", || held() == 0).await;
}
