//! Names, settings, and adapters converted for the original base.

use super::*;

#[test]
fn names_and_settings_go_through_json() {
    for (name, init, changes_base) in [
        ("default", Init::Default, false),
        ("gaussian", Init::Gaussian, false),
        ("random", Init::Random, false),
        ("pissa", Init::Pissa, true),
        ("pissa_niter_16", Init::PissaNiter(16), true),
        ("olora", Init::Olora, true),
        ("orthogonal", Init::Orthogonal, false),
        ("mica", Init::Mica, false),
        ("eva", Init::Eva, false),
        ("corda", Init::Corda, true),
        ("lora_ga", Init::LoraGa, true),
        ("loftq", Init::Loftq, true),
    ] {
        let json = serde_json::to_value(init).unwrap();
        assert_eq!(json, name);
        assert_eq!(serde_json::from_value::<Init>(json).unwrap(), init);
        assert_eq!(init.changes_base(), changes_base, "{name}");
        assert_eq!(
            init.is_drawn(),
            ["default", "gaussian", "random"].contains(&name)
        );
    }
    for wrong in ["pissa_niter_", "pissa_niter_x", "Pissa", "lora-ga"] {
        assert!(
            serde_json::from_value::<Init>(wrong.into()).is_err(),
            "{wrong}"
        );
    }
    let plain = serde_json::to_string(&LoraConfig::new(2)).unwrap();
    assert!(
        !plain.contains("eva") && !plain.contains("loftq"),
        "{plain}"
    );
    let config = LoraConfig::new(2)
        .eva_config(EvaConfig::default().rho(1.5).tau(0.9).whiten(true))
        .corda_config(CordaConfig::default().method(CordaMethod::Kpm))
        .lora_ga_config(
            LoraGaConfig::default()
                .direction(LoraGaDirection::A2rBr)
                .scale(LoraGaScale::GdScale),
        )
        .loftq_config(
            LoftqConfig::default()
                .quantiser(GgmlDType::Q5K)
                .iterations(3),
        );
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["lora_corda_config"]["corda_method"], "kpm");
    assert_eq!(json["lora_ga_config"]["direction"], "A2rBr");
    assert_eq!(json["lora_ga_config"]["scale"], "gd_scale");
    assert_eq!(json["lora_loftq_config"]["quantiser"], "q5k");
    assert_eq!(serde_json::from_value::<LoraConfig>(json).unwrap(), config);
}

#[test]
fn settings_out_of_range_are_listed() {
    let error = LoraConfig::new(2)
        .eva_config(EvaConfig::default().rho(0.5).tau(1.5))
        .lora_ga_config(LoraGaConfig::default().stable_gamma(0.0))
        .loftq_config(
            LoftqConfig::default()
                .quantiser(GgmlDType::F16)
                .iterations(0),
        )
        .validate()
        .unwrap_err()
        .to_string();
    for part in [
        "rho is 0.5",
        "tau is 1.5",
        "stable_gamma is 0",
        "iterations is 0",
        "F16",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn converted_adapters_fit_the_original_weight() -> Result<()> {
    let weight = weight(9, 7, DType::F64);
    let config = LoraConfig::new(3).alpha(6.0).init(Init::Pissa);
    let start = begin(&weight, 3, 2.0, &config)?;
    let moved = |tensor: &Tensor| (tensor * 1.5)? + 0.25;
    let (a, b) = (moved(&start.a)?, moved(&start.b)?);
    let trained = (start.base.unwrap() + (update(&a, &b) * 2.0)?)?;
    let (a, b) = convert(&a, &b, &start.a, &start.b)?;
    assert_eq!((a.dims(), b.dims()), (&[6, 7][..], &[9, 6][..]));
    let same = (&weight + (update(&a, &b) * 2.0)?)?;
    assert_close("converted", &same, &trained, 1e-14);
    let error = convert(&a, &b, &start.a, &start.b).unwrap_err().to_string();
    assert!(
        error.contains("A is [6, 7] now, but was [3, 7] at first"),
        "{error}"
    );
    Ok(())
}
