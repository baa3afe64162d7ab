//! Real connections between real pods.

use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::Mesh;

#[test]
fn a_connection_between_pods_is_mutual_tls_with_both_identities_and_keeps_its_source() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let page = mesh.pod(&one, "shop/page").await;
        let details = mesh.pod(&two, "shop/details").await;
        details.echo(8080).await;

        let (seen, echo) = page.ask(details.at(8080), "hello").await.unwrap();
        assert_eq!((seen, echo.as_str()), (page.v4.to_string(), "hello"));
        let (seen, echo) = page.ask(details.at_v6(8080), "hello six").await.unwrap();
        assert_eq!((seen, echo.as_str()), (page.v6.to_string(), "hello six"));

        for (node, reporter) in [(&one, "source"), (&two, "destination")] {
            let labels = [
                &*format!("reporter=\"{reporter}\""),
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/page\"",
                "destination_principal=\"spiffe://cluster.local/ns/shop/sa/details\"",
                "connection_security_policy=\"mutual_tls\"",
            ];
            for (metric, count) in [
                ("istio_tcp_connections_opened_total", 2),
                ("istio_tcp_connections_closed_total", 2),
                ("istio_tcp_connections_failed_total", 0),
                ("istio_tcp_received_bytes_total", 14),
            ] {
                assert_eq!(node.metric(metric, &labels).await, count, "{reporter} {metric}");
            }
        }
    });
}
