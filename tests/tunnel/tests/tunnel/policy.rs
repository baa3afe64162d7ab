//! Policies, on new connections and on open ones.

use std::time::Duration;

use stillmesh_core::fixtures;
use stillmesh_core::model::{Action, Scope};
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

async fn knows_policy(node: &Node, name: &str) {
    node.knows("the policy", |dump| {
        dump["policies"].as_array().is_some_and(|all| all.iter().any(|policy| policy["name"] == name))
    })
    .await;
}

#[test]
fn a_denied_caller_is_closed_and_others_are_not() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, other) = (mesh.pod(&one, "shop/page").await, mesh.pod(&one, "shop/other").await);
        let details = mesh.pod(&two, "shop/details").await;
        details.echo(8080).await;
        let matches = vec![fixtures::from("shop/page")];
        mesh.policy(fixtures::policy("shop/no-page", Scope::Namespace, Action::Deny, matches));
        knows_policy(&two, "no-page").await;
        assert!(page.ask(details.at(8080), "hello").await.is_err());
        other.ask(details.at(8080), "hello").await.unwrap();
        for node in [&one, &two] {
            node.counts("istio_tcp_connections_failed_total", &["response_flags=\"DENY\""], 1).await;
        }
        mesh.remove_policy(fixtures::policy_key("shop/no-page"));
        two.knows("its end", |dump| dump["policies"].as_array().is_some_and(Vec::is_empty)).await;
        page.ask(details.at(8080), "hello").await.unwrap();
    });
}

#[test]
fn open_connections_end_when_a_policy_comes_to_deny_them() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, other) = (mesh.pod(&one, "shop/page").await, mesh.pod(&one, "shop/other").await);
        let details = mesh.pod(&two, "shop/details").await;
        let stranger = mesh.unmeshed("out/side").await;
        details.echo(8080).await;
        let mut denied =
            [page.connect(details.at(8080)).await.unwrap(), stranger.connect(details.at(8080)).await.unwrap()];
        let mut kept = other.connect(details.at(8080)).await.unwrap();
        let mut byte = [0];
        for stream in denied.iter_mut().chain([&mut kept]) {
            stream.read_exact(&mut byte).await.unwrap();
        }
        let matches = vec![fixtures::from("shop/other")];
        mesh.policy(fixtures::policy("shop/only-other", Scope::Namespace, Action::Allow, matches));
        for stream in &mut denied {
            let mut rest = Vec::new();
            let ended = timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "it is still open");
        }
        kept.write_all(b"hello").await.unwrap();
        let mut echo = vec![0; other.v4.to_string().len() + 5];
        timeout(Duration::from_secs(10), kept.read_exact(&mut echo)).await.unwrap().unwrap();
        two.counts("stillmesh_ztunnel_policy_closed_total", &[], 2).await;
        two.counts("istio_tcp_connections_failed_total", &["response_flags=\"DENY\""], 2).await;
    });
}

#[test]
fn clear_text_passes_until_mutual_tls_is_required() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let page = mesh.pod(&one, "shop/page").await;
        let details = mesh.pod(&two, "shop/details").await;
        let stranger = mesh.unmeshed("out/side").await;
        details.echo(8080).await;
        let (seen, _) = stranger.ask(details.at(8080), "hello").await.unwrap();
        assert_eq!(seen, stranger.v4.to_string());
        let strict = fixtures::policy("shop/strict", Scope::Namespace, Action::Deny, vec![fixtures::clear_text()]);
        mesh.policy(strict);
        knows_policy(&two, "strict").await;
        assert!(stranger.ask(details.at(8080), "hello").await.is_err());
        page.ask(details.at(8080), "hello").await.unwrap();
    });
}
