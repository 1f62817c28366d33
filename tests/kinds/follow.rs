//! The copy of an impl block speaks of the LoRA types of the types that it names.

use super::{F32, adapted, config, linear, norm};
use candle_core::{Module, Result, Tensor};
use candle_nn::{LayerNorm, Linear};
use lora::LoraModel;
use lora_tests::{fixed, whole_life};
use std::sync::Arc;

mod vision {
    use super::super::linear;
    use candle_core::{Module, Result, Tensor};
    use lora::LoraModel;

    #[derive(Clone, LoraModel)]
    pub struct Tower {
        #[lora(rank)]
        pub fc: candle_nn::Linear,
    }

    #[derive(Clone, LoraModel)]
    #[lora(name = "Adapted")]
    pub enum Head {
        Pooled(#[lora(rank)] candle_nn::Linear),
        None,
    }

    #[lora::forward]
    impl Tower {
        pub fn run(&self, xs: &Tensor) -> Result<Tensor> {
            self.fc.forward(xs)
        }
    }

    pub fn tower() -> Tower {
        Tower {
            fc: linear(2, 2, 1),
        }
    }
}

/// No model: the name means the type itself.
#[derive(Clone, Debug)]
struct Config {
    width: usize,
}

#[derive(Clone, LoraModel)]
enum Proj {
    Full(#[lora(rank)] Linear),
    Split {
        #[lora(rank)]
        left: Linear,
        #[lora(rank)]
        right: Linear,
    },
}

#[derive(Clone, LoraModel)]
struct Block {
    proj: Proj,
    norm: LayerNorm,
}

type Function = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// What `skip` holds need not be `Debug`.
#[derive(Clone)]
struct Closure(Arc<Function>);

#[derive(Clone, LoraModel)]
struct Model {
    tower: vision::Tower,
    head: vision::Head,
    blocks: Vec<Block>,
    #[lora(skip)]
    config: Config,
    #[lora(skip)]
    closure: Closure,
    #[lora(rank)]
    last: Linear,
}

#[lora::forward(also(vision::Head, Proj))]
impl Model {
    /// A type elsewhere, by its path.
    fn tower(&self) -> &vision::Tower {
        &self.tower
    }

    /// A type of this module.
    fn block(&mut self, index: usize) -> &mut Block {
        &mut self.blocks[index]
    }

    /// A layer of candle's.
    fn last(&self) -> &candle_nn::Linear {
        &self.last
    }

    /// A type that is no model.
    fn config(&self) -> &Config {
        &self.config
    }

    /// Fields of another type, in patterns by imported names, which need an `also`, and as an argument.
    fn project(block: &Block, xs: &Tensor) -> Result<Tensor> {
        use Proj::{Full, Split as Halves};
        let ys = match &block.proj {
            Full(fc) => fc.forward(xs)?,
            Halves { left, right } => (left.forward(xs)? + right.forward(xs)?)?,
        };
        block.norm.forward(&ys)
    }

    /// A type elsewhere with a LoRA type of another name: `also` gives its path.
    fn pooled(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.head {
            vision::Head::Pooled(fc) => fc.forward(xs),
            vision::Head::None => Ok(xs.clone()),
        }
    }

    /// The same by paths.
    fn is_full(&self) -> bool {
        matches!(self.blocks[0].proj, Proj::Full(_))
            && !matches!(self.blocks[1].proj, Proj::Full(..))
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        assert!(self.is_full());
        let mut xs = self.tower().run(xs)?;
        for block in &self.blocks {
            xs = Self::project(block, &xs)?;
        }
        let xs = (self.closure.0)(&xs)?;
        self.pooled(&xs)?.apply(self.last())
    }
}

fn model() -> Model {
    let block = |proj| Block {
        proj,
        norm: norm(2, 4),
    };
    let (left, right) = (linear(2, 2, 10), linear(2, 2, 11));
    Model {
        tower: vision::tower(),
        head: vision::Head::Pooled(linear(2, 2, 12)),
        blocks: vec![
            block(Proj::Full(linear(2, 2, 13))),
            block(Proj::Split { left, right }),
        ],
        config: Config { width: 2 },
        closure: Closure(Arc::new(|xs| xs * 2.0)),
        last: linear(2, 1, 14),
    }
}

#[test]
fn types_follow() {
    let xs = fixed((3, 2), F32, 5);
    let mut model = whole_life(
        "types",
        &model(),
        &config(),
        |net| net.forward(&xs),
        |model| model.forward(&xs),
    );
    let expected = [
        "tower.fc",
        "head",
        "blocks.0.proj",
        "blocks.1.proj.left",
        "blocks.1.proj.right",
        "last",
    ];
    assert_eq!(adapted(&model), expected);
    let _: &vision::LoraTower = model.tower();
    let _: &mut LoraBlock = model.block(1);
    let _: &lora::layers::LoraLinear = model.last();
    assert_eq!(model.config().width, 2);
    assert!(format!("{model:?}").ends_with(", .. }"));
}
