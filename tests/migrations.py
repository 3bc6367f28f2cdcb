"""How the peers spell what freezekit does: the rows of the page "Coming from ...".

Each row is run by `test_migrating.py`, from the texts that stand here and on the page.
"""

from typing import NamedTuple

Patterns = tuple[str, ...]


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        model: the model that both sides are tried on, a key of `peer_models.MODELS`.
        theirs: the peer's spelling, as many lines as the page shows.
        ours: what stands behind `FreezePlan()`, or all of it.
        differs: what is different though the same parameters are meant, as Markdown.
        takes: what theirs takes beyond or short of what its author meant, as Markdown; in it
            `{more}`, `{less}` and `{other}` stand for these patterns and their number of tensors.
        more: what theirs trains and ours does not.
        less: what ours trains and theirs does not.
        other: what trains on both sides at another learning rate or weight decay.
        epochs: how many epochs are compared.
        moments: pairs of their and our epoch to compare, instead of all.
    """

    model: str
    theirs: str
    ours: str
    differs: str
    takes: str = ""
    more: Patterns = ()
    less: Patterns = ()
    other: Patterns = ()
    epochs: int = 1
    moments: tuple[tuple[int, int], ...] = ()


class Peer(NamedTuple):
    """A section: a title, some words, and rows."""

    title: str
    words: str
    rows: tuple[Row, ...]


PYTORCH = Peer(
    "PyTorch by hand",
    "A loop over `named_parameters()` needs no library and hides nothing.\n"
    "What it leaves to its author are the modes, the gradients that are there already, and the "
    "optimizer.",
    (
        Row("BERT", "model.bert.requires_grad_(False)", 'freeze("bert")',
            "`freeze` also holds what is frozen in eval, without dropout and with its running "
            "statistics kept, and drops its gradients"),
        Row("BERT",
            'for name, p in model.named_parameters(): p.requires_grad = "layer.1" not in name',
            'freeze("bert.encoder.layer.1")',
            "a path, not a part of a text",
            "freezes {less} too: their names have the same part",
            less=("bert.encoder.layer.{10..11}",)),
        Row("BERT",
            "for name, p in model.named_parameters(): "
            'p.requires_grad = name.endswith("bias") or "classifier" in name',
            'freeze("**").unfreeze("**.bias", "classifier")',
            "nothing in what trains; `recipes.bitfit` finds the head"),
        Row("ResNet",
            'for name, p in model.named_parameters(): p.requires_grad = "bn" not in name',
            'freeze("**@BatchNorm2d")',
            "by class, whatever a norm is called",
            "leaves {more} trainable: these norms have no `bn` in their names",
            more=("backbone.layer{2..4}.0.downsample.1",)),
        Row("BERT",
            "optimizer = AdamW([{'params': model.bert.parameters(), 'lr': 2e-5}, "
            "{'params': model.classifier.parameters()}])",
            'group("bert", lr=2e-5)',
            "what no rule names has the optimizer's rate; by hand, what no group names is not "
            "trained"),
        Row("BERT",
            "model.bert.requires_grad_(False)\n"
            "optimizer = AdamW(p for p in model.parameters() if p.requires_grad)\n"
            "if epoch == 2: model.bert.requires_grad_(True)",
            'freeze("bert").unfreeze("bert", at_epoch=2)',
            "the optimizer has all groups from the start",
            "never trains {less}: the optimizer was built without them",
            less=("bert",), epochs=4),
    ),
)  # fmt: skip

SCHEDULER = Peer(
    "finetuning-scheduler",
    "[finetuning-scheduler](https://finetuning-scheduler.readthedocs.io) runs a schedule of phases "
    "inside a Lightning `Trainer`, moves on when a metric stalls, and goes back to the best "
    "checkpoint when it does.",
    (
        Row("BERT",
            "0: {params: [classifier.*, bert.pooler.*], max_transition_epoch: 2}\n"
            "1: {params: ['bert.encoder.layer.1[01].*'], max_transition_epoch: 4, lr: 1.0e-5}\n"
            "2: {params: [bert.embeddings.*, 'bert.encoder.layer.[0-9][.].*'], lr: 1.0e-6}",
            'freeze("bert").unfreeze("bert.pooler")'
            '.unfreeze("bert.encoder.layer.{10..11}", lr=1e-5, at_epoch=2)'
            '.unfreeze("bert.embeddings", "bert.encoder.layer.{0..9}", lr=1e-6, at_epoch=4)',
            "later phases may freeze again, and may overlap; `at_metric` moves on when a metric "
            "stalls",
            epochs=6),
        Row("BERT", "0: {params: [bert.encoder.layer.1.*]}",
            'freeze("**").unfreeze("bert.encoder.layer.1")',
            "an entry is the name of a parameter, or a regular expression for the beginning of "
            "names",
            "trains {more} too: `.*` goes on behind `1`",
            more=("bert.encoder.layer.{10..11}",)),
        Row("BERT",
            "0: {params: [classifier.weight, classifier.bias], max_transition_epoch: 1}\n"
            "1: {params: [bert.pooler.*]}",
            'freeze("**").unfreeze("classifier").unfreeze("bert.pooler", lr=1e-5, at_epoch=1)',
            "what no phase names stays frozen without a word, here `freeze(\"**\")` says it; a "
            "phase without `lr` has `base_max_lr`, here the optimizer's",
            epochs=3),
        Row("BERT", "FinetuningScheduler()",
            'freeze("**").unfreeze_layerwise().group("bert", lr=1e-5)',
            "without a schedule two tensors open at a time, from the last ones, in 101 phases; "
            "here a layer at a time, in 14",
            epochs=101, moments=((1, 0), *((8 * n + 1, n) for n in range(1, 13)), (100, 13))),
    ),
)  # fmt: skip

LIGHTNING = Peer(
    "Lightning",
    "`BackboneFinetuning` opens the `backbone` of a `LightningModule` in some epoch; "
    "`BaseFinetuning` has the functions to write such a callback.\n"
    "The optimizer holds what is trainable when the fit begins, as Lightning asks for.\n"
    "[`FreezeCallback`](engines.md) carries out a plan in its place.",
    (
        Row("ResNet", "BaseFinetuning.freeze(model.backbone)", 'freeze("backbone")',
            "modules are handed over, no names",
            "leaves {more} trainable: `train_bn=True` is the default",
            more=("backbone.**@BatchNorm2d",)),
        Row("ResNet", "BaseFinetuning.freeze(model.backbone, train_bn=False)",
            'freeze("backbone")',
            "Lightning's frozen `BatchNorm` goes by the statistics of the batch, and no longer "
            "keeps its own; `freeze` holds it in eval, where it goes by the ones that it has"),
        Row("ResNet", "BackboneFinetuning(2, lambda epoch: 1.0)",
            'freeze("backbone").unfreeze("backbone", lr_mult=0.1, at_epoch=2)',
            "the rate of the backbone is a tenth of the head's, and a scheduler of the optimizer "
            "keeps it there",
            "trains {more} from the first epoch on, at the head's rate throughout",
            more=("backbone.**@BatchNorm2d",), other=("backbone.**@BatchNorm2d",), epochs=4),
        Row("ResNet", "BackboneFinetuning(1, backbone_initial_ratio_lr=0.5)",
            'freeze("backbone").unfreeze("backbone", lr_mult=0.5, at_epoch=1)'
            '.group("backbone", lr_mult=1.0, at_epoch=2)',
            "by default the rate doubles every epoch until it meets the head's: a rule for each",
            "the same",
            more=("backbone.**@BatchNorm2d",), other=("backbone.**@BatchNorm2d",), epochs=4),
        Row("ResNet",
            "BaseFinetuning.freeze(model.backbone, train_bn=False)\n"
            "if epoch == 2: BaseFinetuning.unfreeze_and_add_param_group("
            "model.backbone.layer4, optimizer, lr=1e-4)",
            'freeze("backbone").unfreeze("backbone.layer4", lr=1e-4, at_epoch=2)',
            "no group is added in the middle, which half of torch's schedulers do not survive",
            epochs=4),
        Row("ViT",
            "BaseFinetuning.freeze(model.blocks)\n"
            "if epoch == 1: BaseFinetuning.unfreeze_and_add_param_group("
            "model.blocks[-1], optimizer, lr=1e-4)",
            'freeze("blocks").unfreeze("blocks[-1]", lr=1e-4, at_epoch=1)',
            "a parameter is in an optimizer or not, whatever its values",
            "never trains {less}: fresh norms have the values of the one that the optimizer "
            "holds, and what it holds is recognized by values",
            less=("blocks[-1].{norm1,norm2}",), epochs=3),
    ),
)  # fmt: skip

LOWER = "backbone.{conv1,bn1,layer1,layer2}"

FASTAI = Peer(
    "fastai",
    "A `Learner` has layer groups from a splitter, freezes the first ones of them, and takes a "
    "`slice` of learning rates; `fine_tune` is a good first try in one line.\n"
    "Below, the splitter makes three groups: up to `layer2`, `layer3` and `layer4`, the head.",
    (
        Row("ResNet", "learn.freeze()", 'freeze("backbone")',
            "`Learner(..., train_bn=False)` freezes the norms too, and they still go by the "
            "statistics of the batch",
            "leaves {more} trainable: `train_bn=True` is the default, and counts `LayerNorm` "
            "as well",
            more=("backbone.**@BatchNorm2d",)),
        Row("ResNet", "learn.freeze_to(-2)",
            'freeze("backbone").unfreeze("backbone.layer{3..4}")',
            "names instead of positions in the splitter's list",
            "leaves {more} trainable",
            more=("backbone.bn1", "backbone.layer{1..2}.**@BatchNorm2d")),
        Row("ResNet", "learn.unfreeze()\nlearn.fit_one_cycle(2, slice(1e-3))",
            'group("backbone", lr=1e-4).group("head", lr=1e-3).no_decay()',
            "all groups but the last have a tenth; norms and biases have no weight decay",
            epochs=2),
        Row("ResNet", "learn.fit_one_cycle(2, slice(1e-5, 1e-3))",
            f'group("{LOWER}", lr=1e-5).group("backbone.layer{{3..4}}", lr=1e-4)'
            '.group("head", lr=1e-3).no_decay()',
            "equal factors from group to group; `lr_range` has them from layer to layer, with no "
            "splitter",
            epochs=2),
        Row("ResNet", "learn.fine_tune(2, base_lr=2e-3)",
            'freeze("backbone").group("head", lr=2e-3)'
            f'.unfreeze("{LOWER}", lr=1e-5, at_epoch=1)'
            '.unfreeze("backbone.layer{3..4}", lr=1e-4, at_epoch=1)'
            '.group("head", lr=1e-3, at_epoch=1).no_decay()',
            "these are the highest rates; each part of `fine_tune` is a one-cycle schedule of its "
            "own, here the LR scheduler is yours",
            "trains {more} in the frozen epoch too",
            more=("backbone.**@BatchNorm2d",), epochs=3),
    ),
)  # fmt: skip

NO_WD = '["cls_token", "pos_embed"]'

TIMM = Peer(
    "timm",
    "[timm](https://huggingface.co/docs/timm) knows the layers of each of its models, and has "
    "the layer decay that BEiT, MAE and their heirs are trained with.",
    (
        Row("ViT", 'timm.utils.freeze(model, ["patch_embed", "blocks.0", "blocks.1"])',
            'freeze("patch_embed", "blocks[:2]")',
            "only paths of modules: `cls_token` and `pos_embed` belong to the root and cannot be "
            "named; here they can"),
        Row("ResNet",
            'timm.utils.freeze(model, ["backbone.conv1", "backbone.bn1", "backbone.layer1"])',
            'freeze("backbone.{conv1,bn1,layer1}")',
            "timm puts other modules in the place of `BatchNorm2d`, with buffers for parameters; "
            "here all modules and parameters stay what they are, and all norms are held"),
        Row("ViT",
            f"timm.optim.param_groups_layer_decay(model, 0.05, {NO_WD}, layer_decay=0.75)",
            'FreezePlan(layers={"final_norm": "last_block"}).layer_decay(decay=0.75).no_decay()'
            '.group("{cls_token,pos_embed}", weight_decay=0.0)',
            "also `--layer-decay 0.75`; the groups carry `lr_scale`, which only timm's schedulers "
            "read, here the rates are in `lr`",
            "with another scheduler, as in Lightning, every layer trains at the full rate"),
        Row("ViT",
            "timm.optim.param_groups_layer_decay(model, 0.05, no_opt_scale=0.1)",
            'FreezePlan(layers={"final_norm": "last_block"}).layer_decay(decay=0.75).no_decay()'
            '.freeze("cls_token", "pos_embed", "patch_embed", "blocks[:4]")',
            "freezing is a side effect of making the groups; here it is a rule"),
        Row("ViT", "timm.optim.param_groups_weight_decay(model, weight_decay=0.05)",
            "no_decay()",
            "nothing: biases and tensors of rank 1"),
    ),
)  # fmt: skip

SKORCH = Peer(
    "skorch",
    "[skorch](https://skorch.readthedocs.io) makes a scikit-learn estimator of a module, so "
    "freezing can be a parameter of a grid search.",
    (
        Row("BERT", 'callbacks=[Freezer("bert.*")]', 'freeze("bert")',
            "parameters only: `BatchNorm` and dropout go on"),
        Row("BERT", 'callbacks=[Freezer("*.bias")]', 'freeze("**.bias")',
            "skorch's `*` crosses dots, as here `**` does"),
        Row("BERT", 'callbacks=[Freezer("bert.encoder.layer.1*")]',
            'freeze("bert.encoder.layer.1")',
            "a path covers what is below it, so no star is needed",
            "freezes {less} too",
            less=("bert.encoder.layer.{10..11}",)),
        Row("BERT", 'callbacks=[Freezer("bert.encoder.layer.[0-11].*")]',
            'freeze("bert.encoder.layer.{0..11}")',
            "`[0-11]` is one character, 0 or 1; here it is an error that says `{0..11}`",
            "leaves {more} trainable",
            more=("bert.encoder.layer.{2..11}",)),
        Row("BERT",
            'callbacks=[Freezer("bert.*"), Unfreezer("bert.encoder.layer.11.*", at=3)]',
            'freeze("bert").unfreeze("bert.encoder.layer.11", at_epoch=2)',
            "skorch counts epochs from 1, freezekit from 0; theirs happens once, in that epoch, "
            "ours holds whenever a run is resumed",
            epochs=4),
        Row("BERT",
            'optimizer__param_groups=[("bert.embeddings.*", {"lr": 1e-5}), '
            '("bert.*", {"lr": 1e-4})]',
            'group("bert", lr=1e-4).group("bert.embeddings", lr=1e-5)',
            "the first pattern that matches wins there, the last one here"),
        Row("BERT", 'optimizer__param_groups=[("classifier", {"lr": 1e-2})]',
            'group("classifier", lr=1e-2)',
            "a pattern must match the names of parameters, and a path of a module is none",
            "leaves {other} at the rate of the rest, without a word",
            other=("classifier",)),
    ),
)  # fmt: skip

MMENGINE = Peer(
    "MMEngine",
    "[MMEngine](https://mmengine.readthedocs.io) has the rates and weight decays of OpenMMLab's "
    "configs in `paramwise_cfg`; what is frozen is an option of each backbone.",
    (
        Row("ResNet",
            'paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1, decay_mult=0.9)})',
            'group("backbone", lr_mult=0.1, weight_decay=0.045)',
            "weight decay is a value here: 0.9 of the optimizer's 0.05"),
        Row("ViT", 'paramwise_cfg=dict(custom_keys={"blocks.1": dict(lr_mult=0.1)})',
            'group("blocks.1", lr_mult=0.1)',
            "a key is a part of a name, and the longest one counts; here the last rule does",
            "slows {other} down too",
            other=("blocks.{10..11}",)),
        Row("ResNet", "paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0)",
            "no_decay()", "norms by class there, by rank here, which finds RMSNorm too"),
        Row("ResNet",
            'paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}, '
            "norm_decay_mult=0.0, bias_decay_mult=0.0)",
            'no_decay().group("backbone", lr_mult=0.1)',
            "here a rule about the rate says nothing about weight decay",
            "decays {other} after all: a key that matches switches the other options off",
            other=("backbone.**@BatchNorm2d",)),
        Row("ResNet", 'paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.0)})',
            'freeze("backbone")',
            "at a rate of 0 gradients, optimizer state and running statistics go on; here `lr=0` "
            "is an error that says `freeze`",
            "a scheduler with an absolute `eta_min` lifts the rate from 0, and trains it"),
        Row("ResNet", "model=dict(backbone=dict(frozen_stages=1))",
            'freeze("backbone.{conv1,bn1,layer1}")',
            "what the number counts depends on the class of the backbone: for ResNet 0 is the "
            "stem, and 1 adds `layer1`"),
    ),
)  # fmt: skip

AXOLOTL = Peer(
    "axolotl",
    "[axolotl](https://docs.axolotl.ai) trains language models from one YAML file; "
    "`unfrozen_parameters` freezes all but what it lists.",
    (
        Row("Llama",
            "unfrozen_parameters: [^lm_head.weight$, ^model.embed_tokens.weight$]",
            'freeze("**").unfreeze("lm_head", "model.embed_tokens")',
            "regular expressions in which a dot is a dot, from the beginning of a name"),
        Row("Llama", "unfrozen_parameters: [model.layers.1]",
            'freeze("**").unfreeze("model.layers.1")',
            "without `$` or a last dot a name may go on",
            "trains {more} too",
            more=("model.layers.{10..11}",)),
        Row("Llama", "unfrozen_parameters: ['model.layers.1[0-9]+.mlp']",
            'freeze("**").unfreeze("model.layers.{10..11}.mlp")',
            "whole numbers in braces, each of which must exist"),
        Row("Llama", "unfrozen_parameters: [.*q_proj, lm_head]",
            'freeze("**").unfreeze("**.q_proj", "lm_head")',
            "`.*` is any number of dots there",
            "leaves {less} frozen, without a word while something else trains",
            less=("**.q_proj",)),
        Row("Llama", "unfrozen_parameters: ['^model.embed_tokens.weight$[32000:]']",
            'freeze("**").unfreeze("model.embed_tokens.weight", rows="32000:")',
            "theirs clears the gradients of the other rows, so weight decay still moves them; "
            "here they are [put back](frozen.md#some-rows-of-a-tensor)"),
    ),
)  # fmt: skip

FACTORY = Peer(
    "LLaMA-Factory",
    "[LLaMA-Factory](https://llamafactory.readthedocs.io) has freeze tuning beside full and LoRA "
    "tuning, and its errors about unknown names list the known ones.",
    (
        Row("Llama", "finetuning_type: freeze\nfreeze_trainable_layers: 2",
            'freeze("**").unfreeze("model.layers[-2:]")',
            "the norm behind the layers and the head stay frozen in both"),
        Row("Llama", "finetuning_type: freeze\nfreeze_trainable_layers: -2",
            'freeze("**").unfreeze("model.layers[:2]")',
            "layers in the middle have no spelling there"),
        Row("Llama",
            "finetuning_type: freeze\nfreeze_trainable_layers: 2\n"
            "freeze_trainable_modules: self_attn,mlp\nfreeze_extra_modules: embed_tokens,lm_head",
            'freeze("**").unfreeze("model.layers[-2:].{self_attn,mlp}", "model.embed_tokens", '
            '"lm_head")',
            "whole paths instead of last parts"),
        Row("Llama", "finetuning_type: freeze\nfreeze_extra_modules: norm",
            'freeze("**").unfreeze("model.layers[-2:]", "model.norm")',
            "an extra module is a part of a name",
            "trains {more} too",
            more=("model.layers[:-2].{input_layernorm,post_attention_layernorm}",)),
        Row("MoE", "finetuning_type: freeze\nfreeze_trainable_layers: 1",
            'freeze("**").unfreeze("model.layers[-1]")',
            "layers are children of `layers`, not numbers in names",
            "trains {more} too: the number of an expert reads like that of a layer",
            more=("model.layers[:-1].mlp.experts.3",)),
    ),
)  # fmt: skip

SWIFT = Peer(
    "ms-swift",
    "[ms-swift](https://swift.readthedocs.io) trains language models from a command line, and "
    "says clearly which options win: first all is trainable, then the freezing ones, then the "
    "`trainable_` ones.",
    (
        Row("Llama", "--freeze_parameters model.layers.1", 'freeze("model.layers.1")',
            "the beginning of a name",
            "freezes {less} too",
            less=("model.layers.{10..11}",)),
        Row("Llama",
            "--freeze_parameters model --trainable_parameters model.layers.11 model.norm",
            'freeze("model").unfreeze("model.layers.11", "model.norm")',
            "the order of the rules, whichever they are"),
        Row("Llama", r"--freeze_parameters_regex '\.mlp\.'", 'freeze("**.mlp")',
            "`re:` takes a regular expression as well, one that matches whole names"),
        Row("Llama", "--freeze_parameters_regex '*.mlp.*'", 'freeze("**.mlp")',
            "what does not compile is a warning there; a bad pattern is an error here",
            "leaves {more} trainable: nothing is frozen",
            more=("**.mlp",)),
        Row("Llama", "--freeze_parameters_ratio 0.5",
            'freeze("model.embed_tokens", "model.layers[:6]")',
            "whole tensors from the first one on, up to that part of all elements, wherever that "
            "ends; here they are named"),
    ),
)  # fmt: skip

KERAS = Peer(
    "Keras",
    "`trainable = False` on a layer is all there is to know, and it is the one peer whose frozen "
    "`BatchNormalization` is in inference mode by itself, whatever the mode of the model.\n"
    "The spellings are tried on a ResNet with the same parts.",
    (
        Row("ResNet", "model.backbone.trainable = False", 'freeze("backbone")',
            "dropout in a frozen layer still drops there; Keras asks for another `compile` after "
            "each change, a plan holds from `apply` on, under `torch.compile` too"),
        Row("ResNet", "for layer in model.layers[:-1]: layer.trainable = False",
            'freeze("**").unfreeze("head")',
            "names instead of positions"),
        Row("ResNet",
            "for layer in model.backbone.layers: "
            "layer.trainable = not isinstance(layer, BatchNormalization)",
            'freeze("backbone.**@BatchNorm2d")',
            "`layers` of an application are all its layers, those of a nested model are not among "
            "them and keep their flags; `**` finds them at any depth"),
        Row("ResNet",
            "model.backbone.trainable = False\nmodel.compile(AdamW(1e-3))\n"
            "model.fit(data, epochs=2)\nmodel.backbone.trainable = True\n"
            "model.compile(AdamW(1e-5))\nmodel.fit(data, epochs=2)",
            'freeze("backbone").unfreeze("backbone", at_epoch=2)'
            '.group("**", lr=1e-5, at_epoch=2)',
            "one training instead of two; the optimizer keeps its state, a compiled one begins "
            "anew",
            epochs=4),
        Row("ResNet",
            "model.backbone.layer1.trainable = False\nmodel.trainable = True",
            'unfreeze("**").freeze("backbone.layer1")',
            "the flag goes to all layers below, and what they had is gone; here the last rule "
            "wins, so the exception stands behind",
            "trains {more} again",
            more=("backbone.layer1",)),
    ),
)  # fmt: skip

PEERS: dict[str, Peer] = {
    "PyTorch": PYTORCH,
    "finetuning-scheduler": SCHEDULER,
    "Lightning": LIGHTNING,
    "fastai": FASTAI,
    "timm": TIMM,
    "skorch": SKORCH,
    "MMEngine": MMENGINE,
    "axolotl": AXOLOTL,
    "LLaMA-Factory": FACTORY,
    "ms-swift": SWIFT,
    "Keras": KERAS,
}
