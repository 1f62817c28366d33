//! Layers behind pointers; fields without layers: closures, locks, cells.

use super::{F32, adapted, live};
use candle_core::{Result, Tensor};
use candle_nn::rnn::LSTMConfig;
use candle_nn::{Activation, Func, LSTM, Linear, Module, RNN, VarBuilder};
use lora::{LoraModel, LoraModule};
use lora_tests::{fixed, values};
use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, RwLock};

fn linear(seed: usize) -> Linear {
    Linear::new(fixed((4, 4), F32, seed), None)
}

/// One layer at two places.
#[derive(Clone, Debug, LoraModel)]
struct Twice {
    #[lora(rank)]
    first: Rc<Linear>,
    #[lora(rank)]
    second: Rc<Linear>,
    third: Arc<Linear>,
}

#[lora::forward]
impl Module for Twice {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = self.first.forward(xs)?.gelu()?;
        self.third.forward(&self.second.forward(&xs)?)
    }
}

/// Each place has adapters of its own. The frozen weight stays one tensor, and counts once.
#[test]
fn a_shared_layer_is_adapted_where_it_stands() {
    let shared = Rc::new(linear(1));
    let net = Twice {
        first: shared.clone(),
        second: shared,
        third: Arc::new(linear(2)),
    };
    let xs = fixed((3, 4), F32, 5);
    let model = live("Rc", &net, &xs);
    assert_eq!(adapted(&model), ["first", "second"]);
    let weight = |layer: &lora::layers::LoraLinear| {
        use lora::Adapted;
        layer.unmerged_weight().id()
    };
    assert_eq!(weight(&model.first), weight(&model.second));
    let params = model.named_params();
    let param = |path: &str| {
        let param = params.iter().find(|param| param.path == path).unwrap();
        values(&param.tensor).unwrap()
    };
    assert_ne!(
        param("first.lora_B.default.weight"),
        param("second.lora_B.default.weight")
    );
}

type Closure = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// What holds no layers is skipped: its value is cloned, and what a pointer points to is shared. It need not
/// be `Debug`.
#[derive(Clone, LoraModel)]
struct Stateful {
    #[lora(rank)]
    fc: Linear,
    #[lora(skip)]
    calls: RefCell<usize>,
    #[lora(skip)]
    table: OnceCell<Tensor>,
    #[lora(skip)]
    log: Arc<Mutex<Vec<usize>>>,
    #[lora(skip)]
    scale: Arc<RwLock<f64>>,
    #[lora(skip)]
    act: Func<'static>,
    #[lora(skip)]
    closures: Vec<Arc<Closure>>,
    #[lora(skip)]
    part: Arc<dyn Module + Send + Sync>,
    /// Candle's, which stays as it is.
    #[lora(skip)]
    rnn: LSTM,
}

#[lora::forward]
impl Module for Stateful {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        *self.calls.borrow_mut() += 1;
        self.log.lock().unwrap().push(xs.dims()[0]);
        let table = self.table.get_or_init(|| fixed(4, F32, 9));
        let xs = (self.fc.forward(xs)? * *self.scale.read().unwrap())?;
        let xs = self.act.forward(&xs.broadcast_add(table)?)?;
        let mut closures = self.closures.iter();
        let xs = closures.try_fold(xs, |xs, closure| closure(&xs))?;
        let xs = self.part.forward(&xs)?;
        let states = self.rnn.seq(&xs.unsqueeze(1)?)?;
        self.rnn.states_to_tensor(&states)
    }
}

#[test]
fn state_is_skipped() {
    let map = candle_nn::VarMap::new();
    let vb = VarBuilder::from_varmap(&map, F32, &candle_core::Device::Cpu);
    let net = Stateful {
        fc: linear(1),
        calls: RefCell::default(),
        table: OnceCell::new(),
        log: Arc::default(),
        scale: Arc::new(RwLock::new(2.0)),
        act: candle_nn::func(|xs| xs.tanh()),
        closures: vec![Arc::new(|xs| xs * 2.0), Arc::new(|xs| xs - 0.5)],
        part: Arc::new(Activation::Silu),
        rnn: candle_nn::lstm(4, 2, LSTMConfig::default(), vb).unwrap(),
    };
    let xs = fixed((3, 4), F32, 5);
    // The gradient passes candle's layer, which is neither listed nor trained.
    let model = live("state", &net, &xs);
    assert_eq!(model.trainable_vars().len(), 2);
    assert!(
        model
            .named_params()
            .iter()
            .all(|p| p.path.starts_with("fc."))
    );
    let (own, shared) = (*net.calls.borrow(), net.log.lock().unwrap().len());
    model.forward(&xs).unwrap();
    assert_eq!(*net.calls.borrow(), own, "a value is cloned");
    assert_eq!(
        net.log.lock().unwrap().len(),
        shared + 1,
        "a pointer is shared"
    );
}
