//! What is kept of connections, as the admin port tells it.

use serde_json::Value;
use stillmesh_core::fixtures;
use stillmesh_core::model::{Action, Scope};
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a node tells once it tells anything: a record is written when its connection has ended.
async fn told(node: &Node, question: &str) -> Vec<Value> {
    let page = format!("/decisions?{question}");
    loop {
        let answer = node.admin(&page).await;
        match answer["decisions"].as_array() {
            Some(decisions) if !decisions.is_empty() => return decisions.clone(),
            _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    }
}

#[test]
fn a_refusal_is_told_at_both_ends_under_one_id_with_what_was_wanted_and_seen() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let page = mesh.pod(&one, "shop/page").await;
        let details = mesh.pod(&two, "shop/details").await;
        details.echo(8080).await;
        page.ask(details.at(8080), "hello").await.unwrap();
        let passed = told(&one, "src=pod/shop/page").await;
        assert_eq!((&passed[0]["reason"], &passed[0]["refused"]), (&"TO_WORKLOAD".into(), &false.into()));
        let id = passed[0]["id"].as_str().unwrap().to_owned();
        let inbound = told(&two, &format!("id={id}")).await;
        assert_eq!((&inbound[0]["hop"], &inbound[0]["reason"]), (&"inbound".into(), &"NO_POLICY".into()));
        assert!(inbound[0]["openUs"].as_u64().unwrap() > 0 && inbound[0]["received"] == 5);

        mesh.policy(fixtures::policy(
            "shop/only-cart",
            Scope::Namespace,
            Action::Allow,
            vec![fixtures::from("shop/cart")],
        ));
        two.knows("the policy", |dump| dump["policies"].as_array().is_some_and(|all| !all.is_empty())).await;
        page.ask(details.at(8080), "hello").await.unwrap_err();
        let refused = loop {
            let found = told(&two, "src=pod/shop/page&dst=pod/shop/details&port=8080&since=600").await;
            if let Some(one) = found.into_iter().find(|told| told["refused"] == true) {
                break one;
            }
        };
        assert_eq!((&refused["reason"], &refused["object"]), (&"NO_ALLOW_MATCHED".into(), &"shop/only-cart".into()));
        let miss = &refused["misses"][0];
        assert_eq!((&miss["attribute"], &miss["policy"]), (&"principal".into(), &"shop/only-cart".into()));
        assert!(miss["wanted"].as_str().unwrap().ends_with("ns/shop/sa/cart"), "{miss}");
        assert!(miss["seen"].as_str().unwrap().ends_with("ns/shop/sa/page"), "{miss}");
        assert!(refused["now"].is_null() && !refused["remedy"].as_str().unwrap().is_empty(), "{refused}");
        // The client's side knows that it was refused, and the same id.
        let outbound = told(&one, &format!("id={}", refused["id"].as_str().unwrap())).await;
        assert_eq!((&outbound[0]["refused"], &outbound[0]["flags"]), (&true.into(), &"DENY".into()));
        // By what is so now, where that is something else.
        mesh.remove_policy(fixtures::policy_key("shop/only-cart"));
        two.knows("its end", |dump| dump["policies"].as_array().is_some_and(Vec::is_empty)).await;
        let again = told(&two, &format!("id={}", refused["id"].as_str().unwrap())).await;
        assert!(again[0]["now"].as_str().unwrap().contains("no policy refuses it"), "{}", again[0]);
        assert!(again[0]["misses"].is_null());
    });
}

#[test]
fn what_is_open_is_told_as_such() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let (page, details) = (mesh.pod(&node, "shop/page").await, mesh.pod(&node, "shop/details").await);
        details.echo(8080).await;
        let mut open = page.connect(details.at(8080)).await.unwrap();
        open.write_all(b"hello").await.unwrap();
        open.read_u8().await.unwrap();
        let found = told(&node, "src=pod/shop/page").await;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|told| told["live"] == true && told["refused"] == false), "{found:?}");
        assert_eq!(found[0]["id"], found[1]["id"]);
        let mut reasons: Vec<_> = found.iter().map(|told| told["reason"].as_str().unwrap()).collect();
        reasons.sort_unstable();
        assert_eq!(reasons, ["NO_POLICY", "TO_WORKLOAD"]);
        drop(open);
        while told(&node, "src=pod/shop/page").await.iter().any(|told| told["live"] == true) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        // What failed for another reason is not laid on policies.
        page.ask(details.at(8099), "hello").await.unwrap_err();
        let refused = told(&node, "port=8099&dst=pod/shop/details").await;
        assert!(refused.iter().all(|told| told["refused"] == true && told["now"].is_null()), "{refused:?}");
        let bad = node.admin_text("/decisions?src=page").await;
        assert!(bad.contains("src=\"page\"") && bad.contains("is accepted"), "{bad}");
    });
}
