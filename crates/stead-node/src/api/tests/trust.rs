use super::{Node, ca, client, name, node, serve_as};
use std::{sync::Arc, time::Duration};
use stead_agent::{
    Client, ClientError, DirectDialer, Identity,
    pki::{ClusterCa, OffsetDateTime},
    tls,
};
use stead_model::ClusterName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

async fn refused(node: &Node, identity: Identity, what: &str) {
    let error = client(&identity, node.address).status().await.expect_err(what);
    assert!(matches!(error, ClientError::Tls { .. }), "{what}: {error:?}");
    node.client.status().await.unwrap();
}

#[tokio::test]
async fn strangers_are_refused() {
    let node = node().await;
    let good = node.ca.issue_client("good", now()).unwrap();
    client(&good, node.address).status().await.unwrap();

    let foreign = ca();
    // The stranger trusts our CA, but its certificate is from another one with the same name.
    let stranger = Identity { ca_pem: good.ca_pem.clone(), ..foreign.issue_client("good", now()).unwrap() };
    refused(&node, stranger, "a client of another cluster's CA").await;

    let past = now() - time_of_leaf() - Duration::from_secs(3600);
    refused(&node, node.ca.issue_client("old", past).unwrap(), "an expired certificate").await;
    let future = now() + Duration::from_secs(30 * 3600);
    refused(&node, node.ca.issue_client("new", future).unwrap(), "a certificate not yet valid").await;
    refused(&node, node.ca.issue_node(&name("n2"), &[], now()).unwrap(), "a node's certificate as a client")
        .await;
    let authority = Identity {
        ca_pem: good.ca_pem.clone(),
        certificate_pem: node.ca.certificate_pem().to_owned(),
        key_pem: node.ca.key_pem(),
    };
    refused(&node, authority, "the CA's own certificate as a client").await;
}

fn time_of_leaf() -> Duration {
    Duration::try_from(stead_agent::pki::LEAF_VALIDITY).unwrap()
}

#[tokio::test]
async fn without_a_certificate_there_is_no_answer() {
    let node = node().await;
    let identity = node.ca.issue_client("x", now()).unwrap();
    // The client's own configuration without its certificate.
    let mut config = (*tls::client_config(&identity).unwrap()).clone();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = TcpStream::connect(node.address).await.unwrap();
    let answer = async {
        let mut stream = connector.connect(tls::server_name(&name("n1")).unwrap(), tcp).await?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: n1\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let error = answer.await.unwrap_err();
    assert!(format!("{error:?}").contains("CertificateRequired"), "{error:?}");
    node.client.status().await.unwrap();
}

#[derive(Debug)]
struct NoCertificate;
impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn plain_http_gets_no_answer() {
    let node = node().await;
    let mut tcp = TcpStream::connect(node.address).await.unwrap();
    tcp.write_all(b"GET /v1/status HTTP/1.1\r\nhost: n1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The end or a reset, preceded at most by a TLS alert (record type 21).
    let _ = timeout(Duration::from_secs(60), tcp.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    node.client.status().await.unwrap();
}

#[tokio::test]
async fn silent_strangers_are_dropped_and_do_not_lock_clients_out() {
    let node = node().await;
    let mut silent = Vec::new();
    for _ in 0..super::super::MAX_HANDSHAKES {
        silent.push(TcpStream::connect(node.address).await.unwrap());
    }
    let end = timeout(Duration::from_secs(60), silent[0].read(&mut [0; 1])).await.expect("dropped in time");
    assert_eq!(end.unwrap_or(0), 0);
    node.client.status().await.unwrap();
}

#[tokio::test]
async fn the_client_trusts_only_the_node_it_names() {
    let node = node().await;
    let good = node.ca.issue_client("good", now()).unwrap();
    let status = |identity: Identity, node_name: &str, address| {
        let client = Client::new(&identity, &name(node_name), address, Arc::new(DirectDialer)).unwrap();
        async move { client.status().await }
    };
    let tls = |result: Result<_, ClientError>, what: &str| match result {
        Err(ClientError::Tls { source, .. }) => source,
        other => panic!("{what}: {other:?}"),
    };
    let wrong = tls(status(good.clone(), "n2", node.address).await, "another node's name");
    assert!(format!("{wrong:?}").contains("NotValidForName"), "{wrong:?}");

    let foreign = ca();
    let impostor = serve_as(foreign.issue_node(&name("n1"), &[], now()).unwrap()).await;
    tls(status(good.clone(), "n1", impostor.0).await, "a server of another CA");
    let old = now() - time_of_leaf() - Duration::from_secs(3600);
    let expired = serve_as(node.ca.issue_node(&name("n1"), &[], old).unwrap()).await;
    tls(status(good.clone(), "n1", expired.0).await, "an expired server");
    let posing = serve_as(node.ca.issue_client("n1", now()).unwrap()).await;
    tls(status(good, "n1", posing.0).await, "a client's certificate as a server");
}

#[tokio::test]
async fn a_ca_kept_as_pem_still_issues_for_its_cluster() {
    let node = node().await;
    let cluster = ClusterName::new("demo").unwrap();
    let kept = ClusterCa::from_pem(&cluster, node.ca.certificate_pem(), &node.ca.key_pem()).unwrap();
    client(&kept.issue_client("later", now()).unwrap(), node.address).status().await.unwrap();
    let again = serve_as(kept.issue_node(&name("n1"), &["127.0.0.1".parse().unwrap()], now()).unwrap()).await;
    client(&node.ca.issue_client("x", now()).unwrap(), again.0).status().await.unwrap();
    let foreign = ca();
    assert!(ClusterCa::from_pem(&cluster, "nonsense", &foreign.key_pem()).is_err());
    assert!(ClusterCa::from_pem(&cluster, node.ca.certificate_pem(), "nonsense").is_err());
    assert!(
        ClusterCa::from_pem(&cluster, node.ca.certificate_pem(), &foreign.key_pem()).is_err(),
        "a key that is not the certificate's"
    );
}

#[tokio::test]
async fn a_silent_address_is_unreachable_not_untrusted() {
    let identity = ca().issue_client("x", now()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = client(&identity, address).status().await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert_eq!(error.to_string(), format!("cannot read status on n1: it does not answer at {address}"));
    // Listens, but says nothing.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let timeouts =
        stead_agent::Timeouts { connect: Duration::from_millis(200), ..stead_agent::Timeouts::default() };
    let client = client(&identity, mute.local_addr().unwrap()).with_timeouts(timeouts);
    assert!(client.status().await.unwrap_err().is_unreachable());
}
