use super::*;

fn update(text: &str) -> Update {
    let found = stillmesh_k8s::parse::documents("t", text);
    assert!(!found.has_errors(), "{:?}", found.findings);
    Update { changes: found.objects.into_iter().map(Change::Set).collect(), ..Update::default() }
}

fn removed(kind: Kind, namespace: &str, name: &str) -> Update {
    Update { changes: vec![Change::Removed(ObjectKey::new(kind, namespace, name))], ..Update::default() }
}

fn gateway(class: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: shop, uid: u1, generation: 1}}\n\
         spec: {{gatewayClassName: {class}, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
    )
}

fn class(name: &str, controller: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec: {{controllerName: {controller}}}\n"
    )
}

fn whose(revision: &str) -> Whose {
    Whose { revision: revision.to_owned(), leads_mesh: true, default_runs: false }
}

/// An API server that does what it is told, and knows nothing of pods.
struct World {
    known: Known,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let settings = Settings { image: "i:1".to_owned(), ..Settings::default() };
        Self { known: Known::new(settings, Mesh::default(), whose("default")), now: Instant::now() }
    }

    /// Makes the writes that are due, until there are none: what they were.
    fn settle(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..50 {
            let (due, later) = self.known.due(self.now, "2026-01-01T00:00:00Z");
            let nothing = due.is_empty();
            for Due { key, write } in due {
                told.push(match &write {
                    Write::Class(own) => format!("class {}", own.name),
                    Write::Object { key, fresh, .. } => format!("{key}{}", if *fresh { " anew" } else { "" }),
                    Write::Status { key, .. } => format!("status of {key}"),
                    Write::Delete { key, .. } => format!("{key} deleted"),
                });
                self.known.written(&key, false, self.now);
                self.make(&key, write);
            }
            match later {
                Some(later) => self.now = later,
                None if nothing => return told,
                None => {}
            }
        }
        panic!("it never settles: {told:?}");
    }

    fn make(&mut self, key: &Key, write: Write) {
        match &write {
            Write::Class(own) => self.known.take(update(&class(own.name, own.controller))),
            Write::Object { object, .. } => {
                let mut object = object.clone();
                if object["kind"] == "Service" {
                    object["spec"]["clusterIPs"] = serde_json::json!(["10.96.0.9"]);
                }
                let object = update(&object.to_string()).changes.pop();
                let Some(Change::Set(placed)) = object else { panic!("no object") };
                self.known.succeeded(key, write, Some(placed.object));
            }
            Write::Delete { .. } => self.known.succeeded(key, write, None),
            Write::Status { key, status, .. } => {
                if let Some(gateway) = self.known.gateways.get_mut(key) {
                    let mut value = serde_json::to_value(&**gateway).unwrap();
                    value["status"] = status.clone();
                    *gateway = Arc::new(serde_json::from_value(value).unwrap());
                }
                if let Some(class) = self.known.classes.get_mut(key) {
                    Arc::make_mut(class).status = serde_json::from_value(status.clone()).unwrap();
                }
            }
        }
    }

    fn programmed(&self) -> (String, String) {
        let gateway = &self.known.gateways[&ObjectKey::new(Kind::Gateway, "shop", "w")];
        let conditions = &gateway.status.as_ref().unwrap().conditions;
        let one = conditions.iter().find(|one| one.type_ == "Programmed").unwrap();
        (one.reason.clone(), one.message.clone())
    }
}

const CLASSES: [&str; 4] = [
    "class istio-waypoint",
    "class stillmesh-waypoint",
    "status of GatewayClass istio-waypoint",
    "status of GatewayClass stillmesh-waypoint",
];

#[test]
fn a_gateway_gets_what_runs_it_and_a_status_and_then_there_is_peace() {
    let mut world = World::new();
    assert_eq!(world.settle(), CLASSES);
    world.known.take(update(&gateway("istio-waypoint")));
    let told = world.settle();
    let made =
        ["ServiceAccount shop/w anew", "Service shop/w anew", "Deployment shop/w anew", "status of Gateway shop/w"];
    assert_eq!(told[..4], made);
    assert!(told[4..].iter().all(|one| one == "status of Gateway shop/w"), "{told:?}");
    assert_eq!(world.programmed().0, "Pending");
    assert_eq!(world.settle(), [""; 0]);
    let key = ObjectKey::new(Kind::Deployment, "shop", "w");
    let mut value = serde_json::to_value(&world.known.made[&key]).unwrap();
    value["status"] = serde_json::json!({"availableReplicas": 1});
    world.known.take(update(&value.to_string()));
    assert_eq!(world.settle(), ["status of Gateway shop/w"]);
    assert_eq!(world.programmed().0, "Programmed");
    // Changed and deleted by somebody, and made for another Gateway of the same name.
    value["spec"]["template"]["spec"]["containers"][0]["image"] = "other".into();
    world.known.take(update(&value.to_string()));
    assert_eq!(world.settle()[0], "Deployment shop/w");
    world.known.take(removed(Kind::Service, "shop", "w"));
    assert_eq!(world.settle()[0], "Service shop/w anew");
    world.known.take(update(&gateway("istio-waypoint").replace("u1", "u2")));
    assert_eq!(world.settle()[..3], ["ServiceAccount shop/w", "Service shop/w", "Deployment shop/w"]);
    world.known.take(removed(Kind::Gateway, "shop", "w"));
    assert_eq!(world.settle(), [""; 0], "what it leaves is the garbage collector's");
}

#[test]
fn a_new_leader_applies_once_what_an_earlier_one_may_have_applied_differently() {
    let mut world = World::new();
    world.known.take(update(&gateway("istio-waypoint")));
    world.settle();
    let mut next = World::new();
    for object in world.known.made.values() {
        next.known.take(update(&serde_json::to_string(object).unwrap()));
    }
    for (class, gateway) in world.known.classes.values().zip(world.known.gateways.values()) {
        next.known.take(update(&serde_json::to_string(&**class).unwrap()));
        next.known.take(update(&serde_json::to_string(&**gateway).unwrap()));
    }
    let told: Vec<String> =
        next.settle().into_iter().filter(|one| !one.contains("Class") && !one.contains("class")).collect();
    assert_eq!(told, ["ServiceAccount shop/w", "Service shop/w", "Deployment shop/w"]);
}

#[test]
fn classes_of_others_are_left_alone_and_istios_while_an_istiod_runs() {
    let mut world = World::new();
    world.known.rival = true;
    world.known.take(update(&gateway("istio-waypoint")));
    assert_eq!(world.settle(), ["class stillmesh-waypoint", "status of GatewayClass stillmesh-waypoint"]);
    world.known.take(update(&class("istio-waypoint", "istio.io/mesh-controller")));
    assert_eq!(world.settle(), [""; 0]);
    world.known.rival = false;
    let told = world.settle();
    assert!(told.contains(&"Deployment shop/w anew".to_owned()) && told.contains(&CLASSES[2].to_owned()), "{told:?}");
    let mut world = World::new();
    world.known.take(update(&(gateway("istio-waypoint") + &class("istio-waypoint", "x.example/y"))));
    assert_eq!(world.settle(), ["class stillmesh-waypoint", "status of GatewayClass stillmesh-waypoint"]);
    world.known.take(update(&(gateway("mine") + &class("mine", "stillmesh.io/waypoint-controller"))));
    assert!(world.settle().contains(&"Deployment shop/w anew".to_owned()));
}

#[test]
fn what_cannot_be_made_is_said_and_tried_less_and_less_often() {
    let mut world = World::new();
    world.known.take(update(&gateway("istio-waypoint")));
    let end = world.now + Duration::from_secs(600);
    let mut tries = 0;
    while world.now < end {
        let (due, mut later) = world.known.due(world.now, "2026-01-01T00:00:00Z");
        for Due { key, write } in due {
            let again = world.known.written(&key, false, world.now);
            later = Some(later.map_or(again, |later| later.min(again)));
            match &write {
                Write::Object { key: own, .. } if own.kind == Kind::Service => {
                    tries += 1;
                    assert_eq!(world.known.refused(&key, "it is there already"), tries == 1);
                }
                _ => world.make(&key, write),
            }
        }
        if !world.known.unsettled() {
            world.now = later.unwrap_or(end);
        }
    }
    assert!((10..30).contains(&tries), "{tries} tries in ten minutes");
    assert_eq!(world.programmed(), ("Invalid".to_owned(), "it cannot be run: it is there already".to_owned()));
}

#[test]
fn without_an_image_nothing_is_run_and_its_status_says_so() {
    let mut world = World::new();
    world.known.settings.image.clear();
    world.known.take(update(&gateway("stillmesh-waypoint")));
    assert!(world.settle().iter().all(|one| !one.contains("shop/w") || one.starts_with("status")));
    assert!(world.programmed().1.contains("WAYPOINT_IMAGE"));
}

fn map(data: serde_json::Value) -> Arc<ConfigMap> {
    let map = serde_json::json!({"metadata": {"name": "options", "namespace": "shop"}, "data": data});
    Arc::new(serde_json::from_value(map).unwrap())
}

fn options() -> ObjectKey {
    ObjectKey::new(Kind::ConfigMap, "shop", "options")
}

const REFERENCE: &str =
    "{gatewayClassName: istio-waypoint, infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: options}}, ";

impl World {
    fn with_overlay() -> Self {
        let mut world = Self::new();
        world.settle();
        let gateway = gateway("istio-waypoint").replace("{gatewayClassName: istio-waypoint, ", REFERENCE);
        world.known.take(update(&gateway));
        world
    }

    fn accepted(&self) -> (String, String) {
        let gateway = &self.known.gateways[&ObjectKey::new(Kind::Gateway, "shop", "w")];
        let conditions = &gateway.status.as_ref().unwrap().conditions;
        let one = conditions.iter().find(|one| one.type_ == "Accepted").unwrap();
        (one.reason.clone(), one.message.clone())
    }

    fn replicas(&self) -> Option<i32> {
        match &self.known.made[&ObjectKey::new(Kind::Deployment, "shop", "w")] {
            Object::Deployment(deployment) => deployment.spec.replicas,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_overlay_is_asked_for_first_and_its_last_good_version_stays() {
    let mut world = World::with_overlay();
    assert_eq!(world.settle(), [""; 0], "nothing is made before it is known how");
    assert_eq!(world.known.overlays_to_ask_for(false), [options()]);
    world.known.told(options(), Ok(None));
    assert_eq!(world.settle(), ["status of Gateway shop/w"]);
    assert_eq!(world.accepted().0, "InvalidParameters");
    assert_eq!(world.known.overlays_to_ask_for(false), [options()], "it may yet come");
    world.known.told(options(), Ok(Some(map(serde_json::json!({"deployment": "spec: {replicas: 3}"})))));
    assert!(world.settle().contains(&"Deployment shop/w anew".to_owned()));
    assert_eq!((world.accepted().0.as_str(), world.replicas()), ("Accepted", Some(3)));
    assert!(world.known.overlays_to_ask_for(false).is_empty() && world.known.overlays_to_ask_for(true).len() == 1);
    for bad in [Ok(None), Err("no right".to_owned()), Ok(Some(map(serde_json::json!({"deployment": "spec: {x: 3}"}))))]
    {
        world.known.told(options(), bad);
        world.settle();
        assert_eq!((world.accepted().0.as_str(), world.replicas()), ("InvalidParameters", Some(3)));
    }
    // It goes on being repaired as it was.
    let key = ObjectKey::new(Kind::Deployment, "shop", "w");
    let mut value = serde_json::to_value(&world.known.made[&key]).unwrap();
    value["spec"]["replicas"] = 1.into();
    world.known.take(update(&value.to_string()));
    assert_eq!(world.settle(), ["Deployment shop/w"]);
    assert_eq!(world.replicas(), Some(3));
    // A leader that does not know what was good leaves it as it is.
    let mut next = World::with_overlay();
    next.known.take(update(&value.to_string()));
    next.known.told(options(), Ok(None));
    assert_eq!(next.settle(), ["status of Gateway shop/w"]);
    assert_eq!(next.replicas(), Some(1));
}

#[test]
fn what_an_overlay_asked_for_goes_with_its_key_if_it_is_the_gateways() {
    let mut world = World::with_overlay();
    let data = serde_json::json!({"horizontalPodAutoscaler": "spec: {maxReplicas: 5}", "podDisruptionBudget": ""});
    world.known.told(options(), Ok(Some(map(data))));
    let told = world.settle();
    for one in ["HorizontalPodAutoscaler shop/w anew", "PodDisruptionBudget shop/w anew"] {
        assert!(told.contains(&one.to_owned()), "{told:?}");
    }
    let own = |kind| ObjectKey::new(kind, "shop", "w");
    for (kind, uid, owner) in [(ASKED_FOR[0], "h1", "u1"), (ASKED_FOR[1], "p1", "u2")] {
        let mut value = serde_json::to_value(&world.known.made[&own(kind)]).unwrap();
        value["metadata"]["uid"] = uid.into();
        value["metadata"]["ownerReferences"][0]["uid"] = owner.into();
        world.known.take(update(&value.to_string()));
    }
    world.known.told(options(), Ok(None));
    assert!(!world.settle().iter().any(|one| one.ends_with("deleted")), "a bad overlay takes nothing away");
    world.known.told(options(), Ok(Some(map(serde_json::json!({})))));
    let (due, _) = world.known.due(world.now + LONGEST_PAUSE, "2026-01-01T00:00:00Z");
    let gone = Write::Delete { key: own(ASKED_FOR[0]), uid: "h1".to_owned() };
    let deletions = due.iter().filter(|due| matches!(due.write, Write::Delete { .. }));
    assert_eq!(deletions.map(|due| &due.write).collect::<Vec<_>>(), [&gone], "what another owns is left");
}

#[test]
fn a_gateway_is_handled_by_its_revision_alone() {
    for (own, runs, leads, labels, handled) in [
        ("default", true, true, "", true),
        ("default", true, false, "", true),
        ("default", true, true, "istio.io/rev: next", false),
        ("next", true, true, "", false),
        ("next", true, false, "istio.io/rev: next", true),
        ("next", false, true, "", true),
        ("next", false, false, "", false),
        ("other", false, true, "istio.io/rev: next", false),
    ] {
        for of_namespace in [false, true] {
            let mut world = World::new();
            world.known.whose = Whose { revision: own.to_owned(), leads_mesh: leads, default_runs: runs };
            let mut gateway = gateway("istio-waypoint");
            if of_namespace {
                let namespace =
                    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n");
                gateway.push_str(&namespace);
            } else {
                gateway = gateway.replace("{name: w,", &format!("{{name: w, labels: {{{labels}}},"));
            }
            world.known.take(update(&gateway));
            let told = world.settle();
            let case = (own, runs, leads, labels);
            assert_eq!(told.iter().any(|one| one.contains("shop/w")), handled, "{case:?} {told:?}");
            assert_eq!(told.iter().any(|one| one.starts_with("class")), leads, "{case:?} {told:?}");
        }
    }
}
