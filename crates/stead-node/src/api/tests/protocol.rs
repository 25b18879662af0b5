//! Agents and clients of other versions of the protocol.

use super::{ca, client, name, node};
use stead_agent::{ClientError, pki::OffsetDateTime, tls};
use stead_model::{
    Failure,
    agent::{PROTOCOL, PROTOCOL_HEADER},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// An agent of another version: real TLS with the cluster's certificates, and this answer to every request.
async fn agent_that_answers(answer: String) -> stead_agent::Client {
    let (ca, now) = (ca(), OffsetDateTime::now_utc());
    let identity = ca.issue_node(&name("n1"), &[], now).unwrap();
    let acceptor = TlsAcceptor::from(tls::server_config(&identity).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    client(&ca.issue_client("test", now).unwrap(), address)
}

fn http(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}")
}

/// A status from before agents sent their protocol version.
const FIRST_STATUS: &str = r#"{"name":"n1","cluster":"demo","phase":"running","boot_id":"b","uptime_ms":1,"timeline":[{"at_ms":0,
    "event":"init began"}],"services":[],"disks":[],"warnings":[],"addresses":[],"kernel":"6","agent_rss_bytes":1,"version":"0.1.0"}"#;

fn version(error: ClientError) -> (u32, String, String) {
    let text = error.to_string();
    let hint = error.hint().unwrap();
    match error {
        ClientError::Version { node, theirs, ours, .. } => {
            assert_eq!((node.as_str(), ours), ("n1", PROTOCOL));
            (theirs, text, hint)
        }
        other => panic!("not a version error: {other:?}"),
    }
}

#[tokio::test]
async fn an_older_agent_is_named_with_both_versions_and_the_remedy() {
    for answer in [
        http("200 OK", "", FIRST_STATUS),
        http("404 Not Found", "", r#"{"error":"no such path in the agent API"}"#),
        http("200 OK", &format!("{PROTOCOL_HEADER}: 1\r\n"), "{}"),
    ] {
        let agent = agent_that_answers(answer).await;
        let (theirs, text, hint) = version(agent.status().await.unwrap_err());
        assert_eq!(theirs, 1);
        assert!(text.contains("on n1: its agent speaks protocol 1"), "{text}");
        assert!(text.ends_with(&format!("this stead protocol {PROTOCOL}")), "{text}");
        assert!(hint.contains("rebuild the node's image"), "{hint}");
        // Likewise for requests that change something, and for streams.
        version(agent.engine().await.unwrap_err());
        version(agent.logs(None, None, false).await.unwrap_err());
        let command = serde_json::from_str(r#"{"command":["true"]}"#).unwrap();
        version(agent.exec(&command).await.unwrap_err());
    }
}

#[tokio::test]
async fn a_newer_agent_is_distinguished_from_an_older_one() {
    let newer = PROTOCOL + 1;
    let agent = agent_that_answers(http("200 OK", &format!("{PROTOCOL_HEADER}: {newer}\r\n"), "{}")).await;
    let (theirs, _, hint) = version(agent.status().await.unwrap_err());
    assert_eq!(theirs, newer);
    assert!(hint.contains("or a newer one"), "{hint}");
}

#[tokio::test]
async fn every_answer_names_the_protocol_and_other_ones_are_refused() {
    let node = node().await;
    for (line, header, want) in [
        ("GET /v1/status", String::new(), 200),
        ("GET /v1/status", format!("{PROTOCOL_HEADER}: {PROTOCOL}\r\n"), 200),
        ("GET /v1/nosuch", format!("{PROTOCOL_HEADER}: {PROTOCOL}\r\n"), 404),
        ("GET /v1/status", format!("{PROTOCOL_HEADER}: {}\r\n", PROTOCOL + 1), 400),
        ("GET /v1/status", format!("{PROTOCOL_HEADER}: 1\r\n"), 400),
        ("GET /v1/status", format!("{PROTOCOL_HEADER}: many\r\n"), 400),
    ] {
        let answer = super::http::whole(&node, &super::http::head(line, &header)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {want} ")), "{line} {header}: {answer}");
        assert!(answer.contains(&format!("{PROTOCOL_HEADER}: {PROTOCOL}\r\n")), "{answer}");
        assert_eq!(want == 400, answer.contains("use the stead that built this node's image"), "{answer}");
    }
}
