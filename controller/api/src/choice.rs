//! Which instance type a claim gets.

use crate::{Class, InstanceType, Mib};

/// The sizes that a claim asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand<'a> {
    /// Virtual processors, fractions allowed; 0 means any.
    pub vcpus: f32,
    /// Memory; 0 means any.
    pub memory: Mib,
    /// An instance type asked for by name. It alone decides: sizes are then defaults of the shim as often as wishes of the pod.
    pub instance_type: Option<&'a str>,
}

/// Why no instance type can be given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChoiceError {
    /// Not a number of processors.
    #[error("vcpus = {vcpus} is not a number of processors")]
    Vcpus {
        /// What was asked for.
        vcpus: f32,
    },
    /// The named type is not offered.
    #[error("instance type {name:?} is not offered for {tee} in this class; offered: {offered}")]
    NotOffered {
        /// What was asked for.
        name: String,
        /// The class's TEE.
        tee: &'static str,
        /// Names of the types that are offered.
        offered: String,
    },
    /// No type is large enough.
    #[error("no instance type with {tee} has {vcpus} vCPUs and {memory}; offered: {offered}")]
    NoFit {
        /// What was asked for.
        vcpus: f32,
        /// What was asked for.
        memory: Mib,
        /// The class's TEE.
        tee: &'static str,
        /// Names of the types that are offered.
        offered: String,
    },
}

/// The first of [`fitting_instance_types`], and so the cheapest.
pub fn choose_instance_type<'a>(types: &'a [InstanceType], class: &Class, demand: &Demand<'_>) -> Result<&'a InstanceType, ChoiceError> {
    fitting_instance_types(types, class, demand).map(|fitting| fitting[0])
}

/// The types that the class allows and that are large enough, cheapest first as providers list them; at least one.
///
/// A linear scan: sizes have no total order, so that no search over a sorted list is correct.
pub fn fitting_instance_types<'a>(
    types: &'a [InstanceType],
    class: &Class,
    demand: &Demand<'_>,
) -> Result<Vec<&'a InstanceType>, ChoiceError> {
    if !(demand.vcpus.is_finite() && demand.vcpus >= 0.0) {
        return Err(ChoiceError::Vcpus { vcpus: demand.vcpus });
    }
    let tee = class.tee.as_str();
    let offered = || types.iter().filter(|t| t.tees.contains(&class.tee) && class.allows_instance_type(&t.name));
    let names = || match offered().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ") {
        names if names.is_empty() => "none".to_owned(),
        names => names,
    };
    if let Some(name) = demand.instance_type {
        let found = offered().find(|t| t.name == name).map(|found| vec![found]);
        return found.ok_or_else(|| ChoiceError::NotOffered { name: name.to_owned(), tee, offered: names() });
    }
    let is_enough = |t: &&InstanceType| f64::from(t.vcpus) >= f64::from(demand.vcpus) && t.memory >= demand.memory;
    let fitting: Vec<&InstanceType> = offered().filter(is_enough).collect();
    if fitting.is_empty() {
        return Err(ChoiceError::NoFit { vcpus: demand.vcpus, memory: demand.memory, tee, offered: names() });
    }
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{RootOfTrust, Tee};

    fn class(instance_types: &[&str]) -> Class {
        let instance_types = instance_types.iter().map(|name| (*name).to_owned()).collect();
        Class { instance_types, ..Class::new(Tee::Snp, RootOfTrust::Hardware).expect("valid") }
    }

    fn instance_type(name: &str, vcpus: u32, memory_gib: u32) -> InstanceType {
        InstanceType { name: name.to_owned(), vcpus, memory: Mib(memory_gib * 1024), gpus: 0, tees: vec![Tee::Snp] }
    }

    fn any_types() -> impl Strategy<Value = Vec<InstanceType>> {
        let tees = proptest::sample::subsequence(Tee::ALL.to_vec(), 0..=4);
        let one = (1_u32..64, 1_u32..64, tees);
        proptest::collection::vec(one, 0..12).prop_map(|list| {
            let named = list.into_iter().enumerate();
            named.map(|(i, (vcpus, gib, tees))| InstanceType { tees, ..instance_type(&format!("t{i}"), vcpus, gib) }).collect()
        })
    }

    proptest! {
        /// Brute force: mark every type that would do, then take the first mark.
        #[test]
        fn choice_equals_brute_force(
            types in any_types(),
            allowed in proptest::sample::subsequence((0..12).collect::<Vec<u32>>(), 0..12),
            eighths in 0_u16..600,
            memory in 0_u32..70_000,
        ) {
            let vcpus = f32::from(eighths) / 8.0;
            let names: Vec<String> = allowed.iter().map(|i| format!("t{i}")).collect();
            let class = class(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let mut cheapest = None;
            for i in (0..types.len()).rev() {
                let t = &types[i];
                let mut is_enough = true;
                is_enough &= t.tees.contains(&Tee::Snp);
                is_enough &= names.is_empty() || names.contains(&t.name);
                is_enough &= u64::from(t.vcpus) * 8 >= u64::from(eighths);
                is_enough &= t.memory.0 >= memory;
                if is_enough {
                    cheapest = Some(t);
                }
            }
            let demand = Demand { vcpus, memory: Mib(memory), instance_type: None };
            prop_assert_eq!(choose_instance_type(&types, &class, &demand).ok(), cheapest);
            let fitting = fitting_instance_types(&types, &class, &demand).unwrap_or_default();
            let is_fitting = |t: &InstanceType| fitting.iter().any(|fit| fit.name == t.name);
            for t in types.iter().filter(|t| t.tees.contains(&Tee::Snp) && (names.is_empty() || names.contains(&t.name))) {
                prop_assert_eq!(is_fitting(t), f64::from(t.vcpus) >= f64::from(vcpus) && t.memory.0 >= memory);
            }
        }
    }

    #[test]
    fn list_that_defeats_binary_search_is_served() {
        let types = [instance_type("a", 8, 8), instance_type("b", 2, 16), instance_type("c", 4, 32)];
        let demand = Demand { vcpus: 6.0, memory: Mib(8 * 1024), instance_type: None };
        assert_eq!(choose_instance_type(&types, &class(&[]), &demand).map(|t| t.name.as_str()), Ok("a"));
    }

    #[test]
    fn named_type_decides_alone_but_must_be_allowed() {
        let types = [instance_type("a", 2, 2), instance_type("b", 4, 4)];
        let demand = Demand { vcpus: 64.0, memory: Mib(0), instance_type: Some("b") };
        assert_eq!(choose_instance_type(&types, &class(&[]), &demand).map(|t| t.name.as_str()), Ok("b"));
        let error = choose_instance_type(&types, &class(&["a"]), &demand).expect_err("b is not allowed");
        assert_eq!(error.to_string(), "instance type \"b\" is not offered for snp in this class; offered: a");
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        for vcpus in [f32::NAN, f32::INFINITY, -1.0] {
            let demand = Demand { vcpus, memory: Mib(0), instance_type: None };
            assert!(matches!(choose_instance_type(&[], &class(&[]), &demand), Err(ChoiceError::Vcpus { .. })));
        }
    }
}
