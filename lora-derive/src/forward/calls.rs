//! Calls of candle's functions that record no backward pass: the rewritten code asks the library for each.
//!
//! The macro sees spellings only. So a path that ends in the name of such a function is handed to the
//! library as a value, whose type says which function it is. The function of candle is replaced by its
//! differentiable counterpart; any other function of that name stays.
//!
//! Methods of tensors go the same way: what they are called on is handed to the library.

use super::rename::is_type;
use crate::params::has_any;
use proc_macro2::TokenStream;
use quote::ToTokens;
use std::collections::HashSet;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::visit_mut::{self, VisitMut};
use syn::{
    Block, Expr, ExprCall, ExprPath, Ident, ItemConst, ItemStatic, Local, Macro, Pat, PatIdent,
    Signature, Token, parse_quote,
};

/// Names of candle's functions that record no backward pass. `lora::ops` decides which function has
/// such a name.
const NAMES: &[&str] = &[
    "flash_attn",
    "layer_norm",
    "rms_norm",
    "rope",
    "rope_i",
    "rope_thd",
    "run_flash_attn_cpu",
    "sdpa",
    "softmax_last_dim",
];

/// Names of the tensor's methods whose backward pass is wrong or missing. `lora::ops::Receiver` has a
/// method of each name.
const METHODS: &[&str] = &[
    "avg_pool2d",
    "avg_pool2d_with_stride",
    "conv1d",
    "conv1d_with_algo",
    "conv2d",
    "conv2d_with_algo",
    "conv_transpose1d",
    "conv_transpose2d",
    "interpolate1d",
    "interpolate2d",
    "max_pool2d",
    "max_pool2d_with_stride",
    "scatter",
    "scatter_add",
    "upsample_bilinear2d",
    "upsample_bilinear2d_with_scale",
    "upsample_nearest1d",
    "upsample_nearest2d",
];

/// Rewrites the calls in a method or function.
pub fn differentiate(sig: &Signature, block: &mut Block, krate: &TokenStream) {
    if sig.constness.is_some() || loads(sig) {
        return;
    }
    let mut locals = Locals::default();
    locals.visit_signature(sig);
    locals.visit_block(block);
    let mut calls = Calls {
        locals,
        krate,
        found: false,
        changed: false,
    };
    calls.visit_block_mut(block);
    if calls.found {
        import(block, krate);
    }
}

/// True for what takes a `VarBuilder`: a constructor computes nothing, and candle's constructors have the
/// names of its functions, `candle_nn::layer_norm` among them.
fn loads(sig: &Signature) -> bool {
    has_any(sig.inputs.to_token_stream(), &|name| name == "VarBuilder")
}

/// Brings the traits that decide into scope, under no name that could meet one of the user's.
fn import(block: &mut Block, krate: &TokenStream) {
    block.stmts.insert(
        0,
        parse_quote!(use #krate::__private::{Candle as _, Other as _};),
    );
}

struct Calls<'a> {
    locals: Locals,
    krate: &'a TokenStream,
    /// A function was found, so that the traits are needed.
    found: bool,
    /// Anything was.
    changed: bool,
}

impl Calls<'_> {
    /// The function that the library chooses for a path, if the path may name one of candle's.
    fn chosen(&mut self, path: &ExprPath, is_called: bool) -> Option<Expr> {
        let segments = &path.path.segments;
        let last = segments.last()?;
        if path.qself.is_some() || !NAMES.iter().any(|name| last.ident == name) {
            return None;
        }
        let parent = segments.iter().rev().nth(1);
        let is_method = parent.is_some_and(|parent| is_type(&parent.ident.to_string()));
        let is_local = parent.is_none() && self.locals.hide(&last.ident, is_called);
        if is_method || is_local {
            return None;
        }
        (self.found, self.changed) = (true, true);
        let krate = self.krate;
        Some(parse_quote!(#krate::__private::Function(#path).differentiable(#path)))
    }

    /// What a method is called on, handed to the library.
    fn receiver(&mut self, receiver: &Expr) -> Expr {
        self.changed = true;
        let krate = self.krate;
        parse_quote!(#krate::__private::Receiver(&#receiver))
    }

    /// `x.scatter(..)` for `Tensor::scatter(x, ..)`.
    fn as_method(&mut self, call: &ExprCall) -> Option<Expr> {
        let Expr::Path(ExprPath {
            qself: None, path, ..
        }) = &*call.func
        else {
            return None;
        };
        let mut segments = path.segments.iter().rev();
        let (method, ty) = (segments.next()?, segments.next()?);
        if ty.ident != "Tensor" || !is_method(&method.ident) {
            return None;
        }
        let mut arguments = call.args.iter();
        let receiver = self.receiver(arguments.next()?);
        let (name, turbofish) = (&method.ident, &method.arguments);
        Some(parse_quote!(#receiver.#name #turbofish(#(#arguments),*)))
    }
}

fn is_method(name: &Ident) -> bool {
    METHODS.iter().any(|method| name == method)
}

fn is_self(receiver: &Expr) -> bool {
    matches!(receiver, Expr::Path(path) if path.path.is_ident("self"))
}

impl VisitMut for Calls<'_> {
    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        match expr {
            Expr::MethodCall(call) => {
                visit_mut::visit_expr_method_call_mut(self, call);
                // A model is no tensor, and its own method may change it.
                if is_method(&call.method) && !is_self(&call.receiver) {
                    *call.receiver = self.receiver(&call.receiver);
                }
            }
            Expr::Call(call) => {
                match &*call.func {
                    Expr::Path(path) => {
                        if let Some(chosen) = self.chosen(path, true) {
                            *call.func = parse_quote!((#chosen));
                        }
                    }
                    _ => self.visit_expr_mut(&mut call.func),
                }
                for argument in &mut call.args {
                    self.visit_expr_mut(argument);
                }
                if let Some(call) = self.as_method(call) {
                    *expr = call;
                }
            }
            Expr::Path(path) => {
                if let Some(chosen) = self.chosen(path, false) {
                    *expr = chosen;
                }
            }
            _ => visit_mut::visit_expr_mut(self, expr),
        }
    }

    /// Of macros only those whose arguments read as expressions, such as `vec!`.
    fn visit_macro_mut(&mut self, call: &mut Macro) {
        let parse = Punctuated::<Expr, Token![,]>::parse_terminated;
        let Ok(mut arguments) = call.parse_body_with(parse) else {
            return;
        };
        let before = std::mem::replace(&mut self.changed, false);
        for argument in &mut arguments {
            self.visit_expr_mut(argument);
        }
        if self.changed {
            call.tokens = arguments.to_token_stream();
        }
        self.changed |= before;
    }

    // What is evaluated at compile time calls no such function.
    fn visit_item_const_mut(&mut self, _: &mut ItemConst) {}

    fn visit_item_static_mut(&mut self, _: &mut ItemStatic) {}
}

/// The names that a method binds.
#[derive(Default)]
struct Locals {
    all: HashSet<String>,
    /// Those that may hold a function: a `let` with another value than a closure cannot.
    callable: HashSet<String>,
}

impl Locals {
    fn hide(&self, name: &Ident, is_called: bool) -> bool {
        let names = if is_called { &self.callable } else { &self.all };
        names.contains(&name.to_string())
    }
}

impl<'ast> Visit<'ast> for Locals {
    fn visit_local(&mut self, local: &'ast Local) {
        let init = local.init.as_ref().map(|init| &*init.expr);
        if let (Pat::Ident(PatIdent { ident, .. }), Some(value)) = (&local.pat, init)
            && !matches!(value, Expr::Closure(_))
        {
            self.all.insert(ident.to_string());
            self.visit_expr(value);
        } else {
            visit::visit_local(self, local);
        }
    }

    fn visit_pat_ident(&mut self, pat: &'ast PatIdent) {
        self.all.insert(pat.ident.to_string());
        self.callable.insert(pat.ident.to_string());
        visit::visit_pat_ident(self, pat);
    }
}
