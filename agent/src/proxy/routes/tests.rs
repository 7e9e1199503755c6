//! What applications offer, put together with a configuration.

use super::*;

const URI: &str = "/service/user";

fn traits(environment: &str) -> Traits {
    Traits { environment: environment.into(), weight: 50, ..Traits::default() }
}

fn offered(instance: &str, uris: &[&str], traits: Traits) -> Offered {
    Offered {
        worker: 0,
        application: "shop".into(),
        instance: instance.into(),
        offers: uris.iter().map(|uri| Offer::new(uri)).collect(),
        traits: Arc::new(traits),
    }
}

fn routes(offers: impl IntoIterator<Item = (u64, Offered)>, former: Option<&Routes>) -> Routes {
    let text = format!("[services.\"{URI}\"]\ninstances = [{{ address = \"127.0.0.1:1\", environment = \"zero\" }}]");
    let checked = crate::config::parse(&text, "moa.toml", &<_>::default()).expect("a valid file");
    Routes::new(Arc::new(checked), &offers.into_iter().collect(), former, &Taps::default())
}

fn service<'r>(routes: &'r Routes, uri: &str) -> &'r ServiceRoute {
    routes.services.iter().find(|service| &*service.uri == uri).expect("the service")
}

fn environments(routes: &Routes) -> Vec<&str> {
    service(routes, URI).plan.subsets().iter().filter_map(|subset| subset.environment.as_deref()).collect()
}

#[test]
fn an_instance_is_what_its_application_says_in_all_that_it_offers() {
    let routes =
        routes([(1, offered("a", &[URI, "/service/other"], traits("pre"))), (2, offered("b", &[URI], <_>::default()))], None);
    let members = &service(&routes, URI).members;
    let known: Vec<_> = members.iter().map(|member| (member.traits.weight, &*member.traits.environment)).collect();
    assert_eq!(known, [(100, "zero"), (50, "pre"), (100, "")]);
    // Once for each connection, however much it offers.
    assert!(Arc::ptr_eq(&members[1].traits, &service(&routes, "/service/other").members[0].traits));
    assert_eq!(environments(&routes), ["zero", "pre"]);
}

#[test]
fn of_connections_of_a_process_the_one_with_the_highest_number_counts() {
    let (old, new) = (offered("a", &[URI], traits("old")), offered("a", &[URI], traits("new")));
    let both = routes([(1, old.clone()), (2, new)], None);
    assert_eq!((service(&both, URI).members[1].conns.len(), environments(&both)), (2, vec!["zero", "new"]));
    let one = routes([(1, old)], Some(&both));
    assert_eq!(environments(&one), ["zero", "old"]);
    let instance = |routes: &Routes| service(routes, URI).members[1].instance.clone();
    assert!(Arc::ptr_eq(&instance(&both), &instance(&one)), "the instance is the same");
}

#[test]
fn environments_have_a_bound_and_those_of_the_configuration_come_first() {
    let many = (0..1000).map(|n| (n, offered(&n.to_string(), &[URI], traits(&format!("{n:04}")))));
    let routes = routes(many, None);
    let known = environments(&routes);
    assert_eq!((known.len(), known[0]), (ENVIRONMENTS_MAX, "zero"));
    assert_eq!(service(&routes, URI).members.len(), 1001);
}
