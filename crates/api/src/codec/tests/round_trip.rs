//! decode(encode(x)) = x for everything that the model can say, and no bytes make the codec panic.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use bytes::Bytes;
use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use stillmesh_core::model::*;
use stillmesh_core::snapshot::Change;

use crate::codec::{address, authorization, decode};
use crate::xds::ResourceType;

fn text() -> impl Strategy<Value = Str> {
    "[a-zé0-9.*-]{0,12}".prop_map(Str::from)
}

fn name() -> impl Strategy<Value = Str> {
    "[a-z0-9.-]{1,12}".prop_map(Str::from)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    let six = any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from(bits)).to_canonical());
    prop_oneof![any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()), six]
}

fn net() -> impl Strategy<Value = IpNet> {
    (ip(), 0..=128u8).prop_map(|(ip, length)| {
        let length = if ip.is_ipv4() { length % 33 } else { length };
        IpNet::new(ip, length).unwrap().trunc()
    })
}

fn port() -> impl Strategy<Value = NonZeroU16> {
    (1..=u16::MAX).prop_map(|port| port.try_into().unwrap())
}

fn key() -> impl Strategy<Value = ServiceKey> {
    (name(), name()).prop_map(|(namespace, hostname)| ServiceKey::new(namespace, hostname))
}

fn policy_key() -> impl Strategy<Value = PolicyKey> {
    (name(), name()).prop_map(|(namespace, name)| PolicyKey::new(namespace, name))
}

fn network_address() -> impl Strategy<Value = NetworkAddress> {
    (text(), ip()).prop_map(|(network, address)| NetworkAddress::new(network, address))
}

fn gateway() -> impl Strategy<Value = Gateway> {
    let destination = prop_oneof![
        key().prop_map(GatewayDestination::Hostname),
        network_address().prop_map(GatewayDestination::Address)
    ];
    (destination, port()).prop_map(|(destination, hbone_mtls_port)| Gateway { destination, hbone_mtls_port })
}

fn mapping() -> impl Strategy<Value = PortMapping> {
    (1..=u16::MAX, any::<u16>()).prop_map(|(service_port, target_port)| PortMapping { service_port, target_port })
}

fn services() -> impl Strategy<Value = Vec<(ServiceKey, Vec<PortMapping>)>> {
    let sorted = |services: BTreeMap<String, Vec<PortMapping>>| {
        services.into_iter().map(|(key, ports)| (ServiceKey::parse(&key).unwrap(), ports)).collect()
    };
    btree_map(key().prop_map(|key| key.to_string()), vec(mapping(), 0..3), 0..3).prop_map(sorted)
}

prop_compose! {
    fn names()(
        name in text(), namespace in name(), trust in name(), account in name(), hostname in text(),
        network in text(), node in text(), canonical in text(), revision in text(), owner in text(),
        cluster in name(), locality in (text(), text(), text()),
    ) -> Workload {
        Workload {
            uid: WorkloadUid(format!("Kubernetes//Pod/{namespace}/{name}").into()),
            name, namespace, hostname, network, node, cluster,
            trust_domain: TrustDomain::new(&trust).unwrap(),
            service_account: account,
            canonical_name: canonical,
            canonical_revision: revision,
            workload_name: owner,
            locality: Locality { region: locality.0, zone: locality.1, subzone: locality.2 },
            addresses: Vec::new(),
            tunnel_protocol: TunnelProtocol::None,
            network_mode: NetworkMode::Standard,
            waypoint: None,
            network_gateway: None,
            workload_type: WorkloadType::Pod,
            native_tunnel: false,
            application_tunnel: None,
            services: Vec::new(),
            authorization_policies: Vec::new(),
            health: Health::Healthy,
            capacity: 1,
            direct: false,
        }
    }
}

prop_compose! {
    fn workload()(
        names in names(), addresses in vec(ip(), 0..3), hbone in any::<bool>(), host in any::<bool>(),
        waypoint in option::of(gateway()), network_gateway in option::of(gateway().prop_map(Box::new)), kind in 0..4usize,
        native_tunnel in any::<bool>(), tunnel in option::of((any::<bool>(), option::of(port()))),
        services in services(), authorization_policies in vec(policy_key(), 0..3), sick in any::<bool>(),
        capacity in 1..u32::MAX, direct in any::<bool>(),
    ) -> Workload {
        Workload {
            addresses, waypoint, network_gateway, native_tunnel, services, authorization_policies, capacity, direct,
            tunnel_protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            network_mode: if host { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            workload_type: [WorkloadType::Deployment, WorkloadType::CronJob, WorkloadType::Pod, WorkloadType::Job][kind],
            application_tunnel: tunnel.map(|(proxy_protocol, port)| ApplicationTunnel { proxy_protocol, port }),
            health: if sick { Health::Unhealthy } else { Health::Healthy },
            ..names
        }
    }
}

fn load_balancing() -> impl Strategy<Value = LoadBalancing> {
    use RoutingScope::*;
    let scope = prop::sample::select(vec![Region, Zone, Subzone, Node, Cluster, Network]);
    let mode = prop::sample::select(vec![Mode::Standard, Mode::Strict, Mode::Failover, Mode::Passthrough]);
    let health = prop::sample::select(vec![HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]);
    (vec(scope, 0..4), mode, health).prop_map(|(routing_preferences, mode, health_policy)| LoadBalancing {
        routing_preferences,
        mode,
        health_policy,
    })
}

prop_compose! {
    fn service()(
        name in text(), key in key(), vips in vec(network_address(), 0..3), ranges in vec((text(), net()), 0..2),
        ports in vec((mapping(), 0..6i32), 0..3), subject_alt_names in vec(text(), 0..2),
        waypoint in option::of(gateway()), weighted_waypoints in vec((gateway(), any::<u32>()), 0..2),
        load_balancing in load_balancing(), families in 0..4usize, canonical in any::<bool>(), own in any::<bool>(),
    ) -> Service {
        let range = |(network, cidr): (Str, IpNet)| NetworkCidr { network, cidr };
        let partial = |range: &NetworkCidr| range.cidr.prefix_len() < range.cidr.max_prefix_len();
        Service {
            name, key, vips, subject_alt_names, waypoint, weighted_waypoints, load_balancing, canonical,
            cidr_vips: ranges.into_iter().map(range).filter(partial).collect(),
            ports: ports.into_iter().map(|(mapping, app_protocol)| ServicePort { mapping, app_protocol }).collect(),
            ip_families:
                [IpFamilies::Automatic, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only, IpFamilies::Dual][families],
            visibility: if own { Visibility::Namespace } else { Visibility::Public },
        }
    }
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

fn account() -> impl Strategy<Value = ServiceAccountMatch> {
    (name(), name()).prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account })
}

prop_compose! {
    fn matching()(
        namespaces in vec(string_match(), 0..2), not_namespaces in vec(string_match(), 0..2),
        principals in vec(string_match(), 0..2), not_principals in vec(string_match(), 0..2),
        source_ips in vec(net(), 0..2), not_source_ips in vec(net(), 0..2),
        destination_ips in vec(net(), 0..2), not_destination_ips in vec(net(), 0..2),
        ports in (vec(any::<u16>(), 0..3), vec(any::<u16>(), 0..3)),
        accounts in (vec(account(), 0..2), vec(account(), 0..2)),
    ) -> Match {
        Match {
            namespaces, not_namespaces, principals, not_principals, source_ips, not_source_ips, destination_ips,
            not_destination_ips, destination_ports: ports.0, not_destination_ports: ports.1,
            service_accounts: accounts.0, not_service_accounts: accounts.1,
        }
    }
}

prop_compose! {
    fn policy()(
        key in policy_key(), scope in 0..3usize, deny in any::<bool>(), dry_run in any::<bool>(),
        order in option::of(name()), rules in vec(vec(vec(matching(), 0..2), 0..2), 0..2),
    ) -> Policy {
        let clause = |matches| Clause { matches };
        let rule = |clauses: Vec<Vec<Match>>| Rule { clauses: clauses.into_iter().map(clause).collect() };
        Policy {
            key, dry_run, order,
            scope: [Scope::Global, Scope::Namespace, Scope::WorkloadSelector][scope],
            action: if deny { Action::Deny } else { Action::Allow },
            rules: rules.into_iter().map(rule).collect(),
            unreadable: None,
        }
    }
}

proptest! {
    #[test]
    fn workloads(workload in workload()) {
        let name = workload.uid.to_string();
        let read = decode(ResourceType::Address, &name, address::encode_workload(&workload).into());
        prop_assert_eq!(read, Ok(Change::Workload(workload.into())));
    }

    #[test]
    fn services_(service in service()) {
        let name = service.key.to_string();
        let read = decode(ResourceType::Address, &name, address::encode_service(&service).into());
        prop_assert_eq!(read, Ok(Change::Service(service.into())));
    }

    #[test]
    fn policies(policy in policy()) {
        let name = policy.key.to_string();
        let read = authorization::decode(&name, authorization::encode(&policy).into());
        prop_assert_eq!(read, Ok(policy));
    }

    #[test]
    fn a_policy_with_a_byte_changed_is_another_or_unreadable_and_never_a_panic(
        policy in policy(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let mut bytes = authorization::encode(&policy);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let read = authorization::decode(&policy.key.to_string(), bytes.clone().into()).unwrap();
        if read.unreadable.is_none() {
            // Whatever was read was read in full: it writes to the same meaning again.
            let again = authorization::decode(&policy.key.to_string(), authorization::encode(&read).into());
            prop_assert_eq!(again, Ok(read));
        }
    }

    #[test]
    fn no_bytes_make_the_codec_panic(bytes in vec(any::<u8>(), 0..200), name in "[a-z/]{0,8}") {
        for kind in ResourceType::ALL {
            let _ = decode(kind, &name, Bytes::from(bytes.clone()));
        }
    }
}
