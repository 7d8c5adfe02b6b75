"""The checks of a fit: the same before the first evaluation of the command line as in ``trainer.fit``."""

import warnings
from types import SimpleNamespace

import pytest
from helpers.command_line import cli, problems, small, write_rows
from helpers.gradients import RecordedData, recorded_round
from helpers.small_models import tiny_tokenizer
from helpers.training import selfplay, trainer_for

from lightning_serl.datamodules import RoundOptions, SelfPlayDataModule
from lightning_serl.datamodules.checks import check_chat_templates, check_fit
from lightning_serl.engines import ReplayEngine
from lightning_serl.errors import InputError
from lightning_serl.prompts import InstructionTemplate, SolveTemplate

TRAINERS = [
    ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches must be at least 1, got 0"),
    ({"accumulate_grad_batches": -2}, "trainer.accumulate_grad_batches must be at least 1, got -2"),
    ({"check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch must be at least 1, got 0"),
    ({"val_check_interval": 0}, "trainer.val_check_interval must be at least 1 and at most 2, got 0"),
    ({"val_check_interval": 3}, "trainer.val_check_interval must be at least 1 and at most 2, got 3"),
]
OPTIONS = [
    (["--model.minibatches", 5000], "model.minibatches is 5000 but a round has only 8 responses"),
    (
        ["--model.dtype", "bfloat16", "--model.optimizer.init_args.lr", 1e-6],
        "model.dtype bfloat16 does not train at learning rate 1e-06",
    ),
    (["--data.max_staleness", 1, "--model.objective.correction", "none"], "data.max_staleness is 1"),
    (["--trainer.accumulate_grad_batches", 0], "trainer.accumulate_grad_batches must be at least 1, got 0"),
    (["--trainer.check_val_every_n_epoch", 0], "trainer.check_val_every_n_epoch must be at least 1, got 0"),
    (["--trainer.val_check_interval", 99], "trainer.val_check_interval must be at least 1 and at most 8, got 99"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS, ids=[" ".join(map(str, o)) for o, _ in OPTIONS])
def test_the_command_line_refuses_before_the_first_evaluation(tmp_path, options, said):
    root, held_out = tmp_path / "run", write_rows(tmp_path / "h.jsonl", problems(2))
    ended = cli("fit", *small(root, held_out), *options)
    assert ended.status == 2, ended.err
    assert said in ended.error
    assert not root.exists(), "nothing was evaluated, and a refusal leaves no run folder"


@pytest.mark.parametrize(("options", "said"), TRAINERS)
def test_check_fit_and_fit_refuse_alike_and_load_nothing(tmp_path, options, said):
    messages = []
    for check in (True, False):
        module, data = selfplay()
        trainer = trainer_for(tmp_path, enable_checkpointing=False, **options)
        with pytest.raises(InputError) as caught:
            check_fit(trainer, module, data) if check else trainer.fit(module, data)
        messages.append(str(caught.value))
        assert "policy" not in module._modules
    assert messages[0] == messages[1]
    assert messages[0].startswith(said)


def test_an_interval_of_evaluations_may_be_longer_than_an_epoch_that_does_not_count(tmp_path):
    module, data = selfplay()
    trainer = trainer_for(tmp_path, val_check_interval=99, check_val_every_n_epoch=None, enable_checkpointing=False)
    check_fit(trainer, module, data)
    trainer = trainer_for(tmp_path, val_check_interval=99, limit_val_batches=0, enable_checkpointing=False)
    check_fit(trainer, module, data)


def test_the_module_refuses_by_itself_with_a_datamodule_of_the_user(tmp_path):
    module, _ = selfplay()
    trainer = trainer_for(tmp_path, accumulate_grad_batches=0, enable_checkpointing=False)
    with pytest.raises(InputError, match=r"trainer\.accumulate_grad_batches must be at least 1, got 0"):
        trainer.fit(module, RecordedData([recorded_round()]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds_per_epoch": 0}, "data.rounds_per_epoch must be at least 1, got 0"),
        ({"max_tokens": 0}, "data.max_tokens must be at least 1, got 0"),
        ({"seed": -1}, "data.seed must be at least 0, got -1"),
        (
            {"max_tokens": 8, "round": RoundOptions(overlong_buffer=9)},
            "data.round.overlong_buffer must be at most 8, got 9; the upper limit is data.max_tokens",
        ),
    ],
)
def test_options_are_refused_when_the_datamodule_is_made(options, said):
    with pytest.raises(InputError) as caught:
        SelfPlayDataModule(seeds="tiny:seeds", **options)
    assert str(caught.value) == said


def test_a_prediction_file_that_holds_something_is_refused_before_anything_loads(tmp_path):
    target = tmp_path / "made.jsonl"
    target.write_text("{}\n")
    module, data = selfplay(predict_to=str(target))
    with pytest.raises(InputError, match=r"data\.predict_to .* exists already"):
        trainer_for(tmp_path).predict(module, data)
    assert "policy" not in module._modules
    assert target.read_text() == "{}\n"


def test_recordings_cannot_be_carried(tmp_path):
    module, data = selfplay(engine=ReplayEngine({"a": ["b"]}), max_staleness=1)
    with pytest.raises(InputError, match=r"data\.max_staleness is 1 but data\.engine replays recordings"):
        check_fit(trainer_for(tmp_path), module, data)


@pytest.mark.parametrize("option", ["data.solve", "data.templates.verify", "data.writing.template"])
def test_names_that_a_chat_template_never_reads(option):
    """Jinja ignores them, so that a misspelled switch of thinking would be paid for in the whole run."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
    )
    policy = SimpleNamespace(tokenizer=tokenizer)

    def check(chat=True, **names):
        made = (InstructionTemplate if option == "data.writing.template" else SolveTemplate)(
            chat=chat, chat_kwargs=names
        )
        solve = {"solve": SolveTemplate(), option.rpartition(".")[2]: made}
        few_shot = made if isinstance(made, InstructionTemplate) else None
        check_chat_templates(policy, solve if few_shot is None else {"solve": SolveTemplate()}, few_shot)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(enable_thinking=False, tools=None)
        check(chat=False, enable_thinkin=False)
    for wrong in ("enable_thinkin", "thinking", "Enable_Thinking"):
        with pytest.raises(InputError, match=rf"^{option}\.chat_kwargs names '{wrong}', .* mean 'enable_thinking'"):
            check(**{wrong: False})
    with pytest.warns(UserWarning, match=rf"^{option}\.chat_kwargs names 'date_string', .* changes nothing"):
        check(date_string="26 Jul 2024")
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "\n{{ messages }}{{ date_string }}"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(date_string="26 Jul 2024")
