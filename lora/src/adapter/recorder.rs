//! [`Recorder`]: notes a layer's inputs for a calibration.

use crate::init::Calibration;
use candle_core::{Result, Tensor};
use std::sync::{Arc, Mutex};

/// Notes one layer's inputs while the model is calibrated.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    path: String,
    calibration: Arc<Mutex<Calibration>>,
}

impl Recorder {
    pub(crate) fn new(path: &str, calibration: &Arc<Mutex<Calibration>>) -> Self {
        Self {
            path: path.into(),
            calibration: calibration.clone(),
        }
    }

    pub(crate) fn observe(&self, xs: &Tensor) -> Result<()> {
        let calibration = self.calibration.lock();
        let mut calibration = calibration.unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(calibration.observe_inputs(&self.path, xs)?)
    }
}
