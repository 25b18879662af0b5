//! Requests that Stead's client never sends.

use super::{Node, name, node};
use bytes::BytesMut;
use std::{sync::Arc, time::Duration};
use stead_agent::{
    exec::{read_frame, write_frame},
    frame::Frame,
    pki::OffsetDateTime,
    tls,
};
use stead_model::agent::{ErrorBody, ExecRequest};
use stead_testkit::wait::eventually_async;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

async fn connect(node: &Node) -> TlsStream<TcpStream> {
    let identity = node.ca.issue_client("raw", OffsetDateTime::now_utc()).unwrap();
    let connector = TlsConnector::from(Arc::clone(&tls::client_config(&identity).unwrap()));
    let tcp = TcpStream::connect(node.address).await.unwrap();
    connector.connect(tls::server_name(&name("n1")).unwrap(), tcp).await.unwrap()
}

/// The answer to raw bytes.
pub async fn whole(node: &Node, request: &[u8]) -> String {
    let mut stream = connect(node).await;
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.expect("an answer");
    String::from_utf8(answer).unwrap()
}

/// Status and body of the answer to raw bytes.
async fn raw(node: &Node, request: &[u8]) -> (u16, String) {
    let answer = whole(node, request).await;
    let status = answer.split(' ').nth(1).map_or(0, |s| s.parse().unwrap());
    (status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
}

pub fn head(line: &str, more: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n{more}\r\n").into_bytes()
}

#[tokio::test]
async fn wrong_requests_get_their_status_and_an_error_body() {
    let node = node().await;
    for (line, more, want) in [
        ("GET /", "", 404),
        ("GET /v1/nosuch", "", 404),
        ("GET /v1/status/../status", "", 404),
        ("GET /v1/%73tatus", "", 404),
        ("DELETE /v1/status", "", 405),
        ("GET /v1/exec", "", 405),
        ("POST /v1/exec", "", 426),
        ("POST /v1/exec", "upgrade: websocket\r\nconnection: upgrade\r\n", 426),
        ("GET /v1/files?path=relative", "", 400),
        ("GET /v1/files?path=/nosuch", "", 404),
        ("PUT /v1/files?path=/nosuch", "content-length: 0\r\n", 404),
        ("PUT /v1/files?path=/etc/passwd", "content-length: 0\r\n", 400),
        ("GET /v1/logs?tail=many", "", 400),
        ("POST /v1/reboot", "content-length: 2\r\n", 400),
        ("POST /v1/reboot", "content-length: 65537\r\n", 413),
        ("POST /v1/reboot", "content-length: 99999999999\r\n", 413),
    ] {
        let mut request = head(line, more);
        if more.contains("length: 2\r") {
            request.extend_from_slice(b"{}");
        }
        let (status, body) = raw(&node, &request).await;
        assert_eq!(status, want, "{line}: {body}");
        let error: ErrorBody =
            serde_json::from_str(&body).unwrap_or_else(|e| panic!("{line}: {e}: {body:?}"));
        assert!(!error.error.is_empty());
    }
}

#[tokio::test]
async fn bodies_and_heads_are_bounded() {
    let node = node().await;
    let mut chunked = head("POST /v1/reboot", "transfer-encoding: chunked\r\n");
    chunked.extend_from_slice(format!("{:x}\r\n", 70_000).as_bytes());
    chunked.extend_from_slice(&[b' '; 70_000]);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    assert_eq!(raw(&node, &chunked).await.0, 413);
    let long = format!("x-long: {}\r\n", "x".repeat(20_000));
    assert_eq!(raw(&node, &head("GET /v1/status", &long)).await.0, 431);
    let many: String = (0..50).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert_eq!(raw(&node, &head("GET /v1/status", &many)).await.0, 431);
    assert_eq!(raw(&node, b"\x00\x01garbage\r\n\r\n").await.0, 400);
    assert!(node.client.status().await.is_ok());
}

async fn upgraded(node: &Node) -> TlsStream<TcpStream> {
    let mut stream = connect(node).await;
    let request = b"POST /v1/exec HTTP/1.1\r\nhost: n1\r\nconnection: upgrade\r\nupgrade: stead-exec\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    stream
}

#[tokio::test]
async fn garbage_frames_end_the_session() {
    let node = node().await;
    for garbage in [
        &b"\xff\xff\xff\xff\xff\xff"[..],
        b"\x00\x00\x00\x00\x02{]",
        b"\x01\x00\x00\x00\x01x",
        b"\x00\xff\xff\xff\xff",
    ] {
        let mut stream = upgraded(&node).await;
        stream.write_all(garbage).await.unwrap();
        let mut buffer = BytesMut::new();
        let frame = timeout(Duration::from_secs(60), read_frame(&mut stream, &mut buffer)).await.unwrap();
        match frame.unwrap() {
            Some(Frame::Exit(exit)) => {
                assert!(exit.code == 126 && exit.error.unwrap().contains("not a request"), "{garbage:?}");
            }
            other => panic!("{garbage:?}: {other:?}"),
        }
        assert!(read_frame(&mut stream, &mut buffer).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn garbage_after_the_request_ends_the_command() {
    let node = node().await;
    for garbage in [&b"\x09\x00\x00\x00\x00"[..], b"\x07\x00\x00\x00\x0a{\"code\":0}"] {
        let mut stream = upgraded(&node).await;
        let request = ExecRequest {
            command: ["sh", "-c", "echo $$; exec sleep 1000"].map(str::to_owned).into(),
            environment: Default::default(),
            cwd: None,
            tty: None,
        };
        write_frame(&mut stream, &mut BytesMut::new(), &Frame::Request(request)).await.unwrap();
        let mut buffer = BytesMut::new();
        let Some(Frame::Stdout(pid)) = read_frame(&mut stream, &mut buffer).await.unwrap() else {
            panic!("no pid")
        };
        let pid = rustix::process::Pid::from_raw(std::str::from_utf8(&pid).unwrap().trim().parse().unwrap())
            .unwrap();
        stream.write_all(garbage).await.unwrap();
        eventually_async("the command is gone", || rustix::process::test_kill_process(pid).is_err()).await;
    }
}
