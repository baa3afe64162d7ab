//! Spans of connections, as a collector gets them.

use prost::Message as _;
use stillmesh_otlp::message::{ExportTraceServiceRequest, Span, Value};
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::collector::{self, Sent};
use stillmesh_tunnel_tests::{Mesh, PATIENCE};
use tokio::sync::mpsc::Receiver;

/// The next span, and who tells it.
async fn next(sent: &mut Receiver<Sent>) -> (Span, String) {
    let export = tokio::time::timeout(PATIENCE, sent.recv()).await.unwrap().unwrap();
    assert_eq!(export.path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let mut resource = ExportTraceServiceRequest::decode(&export.body[5..]).unwrap().resource_spans.remove(0);
    let mut spans = resource.scope_spans.remove(0).spans;
    assert_eq!(spans.len(), 1, "{spans:?}");
    (spans.remove(0), format!("{:?}", resource.resource))
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    let value = span.attributes.iter().find(|one| one.key == key)?.value.as_ref()?;
    match value.value.as_ref()? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

#[test]
fn both_ends_tell_of_a_connection_as_parent_and_child_where_they_are_asked_to() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let ((one_at, mut one_sent), (two_at, mut two_sent)) =
            (collector::start(&[]).await, collector::start(&[]).await);
        let one = mesh.node_with(&[("HOP_SPANS_COLLECTOR", &one_at.to_string())]).await;
        let two = mesh.node_with(&[("HOP_SPANS_COLLECTOR", &two_at.to_string())]).await;
        let silent = mesh.node().await;
        let page = mesh.pod(&one, "shop/page").await;
        let details = mesh.pod(&two, "shop/details").await;
        let quiet = mesh.pod(&silent, "shop/quiet").await;
        details.echo(8080).await;
        page.ask(details.at(8080), "hello").await.unwrap();
        let (client, by) = next(&mut one_sent).await;
        assert!(by.contains("ztunnel.istio-system"), "{by}");
        let (server, _) = next(&mut two_sent).await;
        assert_eq!((client.kind, server.kind, client.parent_span_id.len()), (3, 2, 0));
        assert_eq!((&server.trace_id, &server.parent_span_id), (&client.trace_id, &client.span_id));
        assert_ne!(server.span_id, client.span_id);
        assert_eq!(
            (attribute(&client, "direction"), attribute(&server, "direction")),
            (Some("outbound"), Some("inbound"))
        );
        assert_eq!(
            (attribute(&server, "reason"), attribute(&client, "reason")),
            (Some("NO_POLICY"), Some("TO_WORKLOAD"))
        );
        assert!(attribute(&server, "src.identity").unwrap().ends_with("/ns/shop/sa/page"));
        assert!(client.status.is_none() && client.start_time_unix_nano < client.end_time_unix_nano);
        // Of a client whose node tells nothing the server's side tells alone, without a parent that nobody would find.
        quiet.ask(details.at(8080), "hello").await.unwrap();
        let (server, _) = next(&mut two_sent).await;
        assert_eq!(attribute(&server, "src.workload"), Some("quiet"));
        assert!(server.parent_span_id.is_empty());
        assert!(one_sent.try_recv().is_err());
        // What fails is an error.
        page.ask(details.at(9), "hello").await.unwrap_err();
        let (client, _) = next(&mut one_sent).await;
        assert!(client.status.is_some_and(|status| status.code == 2 && !status.message.is_empty()));
    });
}
