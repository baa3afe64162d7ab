//! Bad input: said with file, line, column and object, and the rest works on.

use crate::mesh::{client, namespace, server};
use crate::support::{Mesh, STILLMESH, run, text, wait};

#[test]
fn each_mistake_is_reported_with_its_place_and_the_rest_works() {
    let good = namespace("good", true) + &server("good", "server-1", "node1") + &client("good", "client-1", "node2");
    let mistakes = [
        ("not-yaml.yaml", "a: [1, 2", "not-yaml.yaml:"),
        ("kind.yaml", "apiVersion: v1\nkind: Gizmo\nmetadata: {name: x}\n", "Gizmo"),
        ("type.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: typed}\nspec: {ports: eighty}\n", "type.yaml:4"),
        (
            "port.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: ported}\nspec: {ports: [{port: 80800}]}\n",
            "80800",
        ),
        (
            "one.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: twice}\nspec: {ports: [{port: 80}]}\n",
            "one.yaml",
        ),
        (
            "two.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: twice}\nspec: {ports: [{port: 81}]}\n",
            "two.yaml",
        ),
        (
            "nothing.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: lonely, namespace: good}\n\
             spec: {selector: {matchLabels: {app: nobody}}, rules: [{}]}\n",
            "lonely",
        ),
        (
            "image.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: pulled, namespace: good}\nspec: {containers: [{name: a, image: nginx}]}\n",
            "nginx",
        ),
        (
            "user.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: rooted, namespace: good}\n\
             spec: {securityContext: {runAsUser: 7}, containers: [{name: a, command: ['true']}]}\n",
            "runAsUser",
        ),
    ];
    let mut files = vec![("good.yaml", good.as_str())];
    files.extend(mistakes.iter().map(|(file, content, _)| (*file, *content)));
    let mesh = Mesh::launch(&files);
    wait("the good pods run", || {
        mesh.command(&["get", "pods", "-n", "good", "-o", "json"]).status.success() && mesh.captured("good")
    });
    let address = format!("{}:7000", mesh.ips("good", "server-1")[0]);
    wait("traffic flows", || mesh.peer("good", "client-1", &["echo", &address]).status.success());
    for (file, _, words) in mistakes {
        wait(&format!("{file} is reported with {words:?} in:\n{}", mesh.said()), || {
            mesh.said().lines().any(|line| line.contains(words))
        });
    }
    mesh.delete("not-yaml.yaml");
    mesh.ask("good", "client-1", &["echo", &address]);
}

#[test]
fn a_directory_that_is_not_there_is_an_error_that_names_it() {
    let output = run(std::process::Command::new(STILLMESH).args(["up", "/no/such/directory", "--name", "nowhere"]));
    assert!(!output.status.success());
    assert!(text(&output).contains("/no/such/directory"), "{}", text(&output));
}
