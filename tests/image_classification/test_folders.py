import itertools
import math

import numpy as np
import pytest

from tests.extras import needs

needs("grain")
Image = needs("PIL.Image")

from examples.image_classification import folders

CLASSES = ["ant", "bee", "cat"]
PER_CLASS, IMAGES = 4, 12


@pytest.fixture
def root(tmp_path):
  """Image number i, 20 pixels wide and 24 high, is red by 20 i of 255."""
  numbers = itertools.count()
  for name in CLASSES:
    (tmp_path / "train" / name).mkdir(parents=True)
    for file in range(PER_CLASS):
      image = Image.new("RGB", (20, 24), (20 * next(numbers), 0, 0))
      image.save(tmp_path / "train" / name / f"{file}.jpg")
  return tmp_path


@pytest.fixture
def folder(root):
  return folders.find_images(root, "train")


def train(folder, count, start=0, **options):
  options = {
    "batch_size": 4,
    "seed": 0,
    "resolution": 8,
    "workers": 0,
  } | options
  batches = folders.training_batches(folder, start=start, **options)
  return list(itertools.islice(batches, count))


def evaluate(folder, **options):
  options = {"batch_size": 5, "resolution": 8, "workers": 0} | options
  return list(folders.evaluation_batches(folder, **options))


def numbers(batches):
  red = np.concatenate([batch["image"][..., 0] for batch in batches])
  return np.rint(red.mean((1, 2)) / 20).astype(int).tolist()


def assert_same(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


def paint_gradients(folder):
  """Leaves images that no two crops of are equal."""
  gradient = np.arange(20 * 24 * 3, dtype=np.uint8).reshape(24, 20, 3)
  for path in folder.paths:
    Image.fromarray(gradient).save(path)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-20])


def write_text(path):
  path.write_text("no image")


def write_postscript(path):
  Image.new("RGB", (20, 24)).save(path, format="EPS")


def enlarge(path):
  Image.new("RGB", (200, 200)).save(path)


def test_classes_are_sub_folders_and_files_are_sorted(root):
  for hidden in (".ant.jpg", "notes.txt"):
    (root / "train" / "ant" / hidden).touch()
  (root / "train" / ".cache").mkdir()
  (root / "train" / "ant" / "0.jpg").rename(root / "train" / "ant" / "9.JPEG")
  found = folders.find_images(root, "train")
  assert found.classes == CLASSES
  assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
  assert found.labels.dtype == np.int32
  names = [path.relative_to(root / "train").as_posix() for path in found.paths]
  assert names[:5] == [
    "ant/1.jpg",
    "ant/2.jpg",
    "ant/3.jpg",
    "ant/9.JPEG",
    "bee/0.jpg",
  ]


def test_a_split_that_is_not_there_is_named(root):
  with pytest.raises(FileNotFoundError, match="val is no folder"):
    folders.find_images(root, "val")


def test_fewer_than_two_classes_are_an_error(root):
  (root / "val").mkdir()
  with pytest.raises(ValueError, match="val needs .* two classes .* none"):
    folders.find_images(root, "val")
  (root / "val" / "ant").mkdir()
  with pytest.raises(ValueError, match=r"val needs .* two classes .*\['ant'\]"):
    folders.find_images(root, "val")


def test_a_class_without_an_image_is_named(root):
  (root / "train" / "dog").mkdir()
  (root / "train" / "dog" / "readme.txt").touch()
  with pytest.raises(ValueError, match="dog has no image"):
    folders.find_images(root, "train")


def test_classes_must_be_those_of_training(root):
  (root / "train").rename(root / "val")
  with pytest.raises(ValueError, match=r"val has .* not known: \['bee'\]"):
    folders.find_images(root, "val", ["ant", "cat"])
  with pytest.raises(ValueError, match=r"val lacks classes: \['dog'\]"):
    folders.find_images(root, "val", [*CLASSES, "dog"])
  assert folders.find_images(root, "val", CLASSES).classes == CLASSES


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(folder):
  batches = train(folder, 6)
  orders = numbers(batches[:3]), numbers(batches[3:])
  assert [sorted(order) for order in orders] == [list(range(IMAGES))] * 2
  assert orders[0] != orders[1]
  for batch in batches:
    assert batch["image"].shape == (4, 8, 8, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert batch["skipped"] == 0
    labels = folder.labels[numbers([batch])]
    np.testing.assert_array_equal(batch["label"], labels)


def test_what_fills_no_batch_is_left_out_of_the_epoch(folder):
  orders = np.array(numbers(train(folder, 16, batch_size=5))).reshape(-1, 10)
  assert all(len(set(order)) == 10 for order in orders)
  assert set(orders.ravel()) == set(range(IMAGES))


@pytest.mark.slow
def test_the_seed_sets_order_and_crops(folder):
  assert_same(train(folder, 2), train(folder, 2))
  assert numbers(train(folder, 3)) != numbers(train(folder, 3, seed=1))


def test_a_resumed_run_gets_the_batches_of_an_uninterrupted_one(folder):
  paint_gradients(folder)
  whole = train(folder, 9)
  for start in (1, 3, 7):
    assert_same(whole[start:], train(folder, 9 - start, start=start))
  crops = np.concatenate([batch["image"] for batch in whole])
  assert len(np.unique(crops, axis=0)) == len(crops)


@pytest.mark.slow
def test_processes_share_each_batch(folder):
  shares = [
    train(folder, 6, process_index=index, process_count=2) for index in (0, 1)
  ]
  for whole, first, second in zip(train(folder, 6), *shares):
    for key in ("image", "label"):
      together = np.stack([first[key], second[key]], 1)
      np.testing.assert_array_equal(
        whole[key], together.reshape(whole[key].shape)
      )


@pytest.mark.slow
def test_workers_read_what_one_process_reads_and_name_a_broken_file(folder):
  def until_broken(workers):
    batches = []
    with pytest.raises(ValueError) as info:
      for batch in folders.training_batches(
        folder, batch_size=2, seed=0, start=0, resolution=8, workers=workers
      ):
        batches.append(batch)
    return batches, str(info.value)

  broken = folder.paths[numbers(train(folder, 6, batch_size=2))[-1]]
  paint_gradients(folder)
  truncate(broken)
  batches, message = until_broken(workers=0)
  others, other_message = until_broken(workers=2)
  assert len(batches) == 5
  assert_same(batches, others)
  assert message.startswith(f"{broken} is broken: image file is truncated")
  assert message == other_message


@pytest.mark.slow
def test_crops_have_the_areas_and_aspects_of_the_convention(tmp_path):
  x, y = np.meshgrid(np.arange(240), np.arange(200))
  image = Image.fromarray(np.uint8(np.stack([x, y, 0 * x], -1)))
  for name in CLASSES:
    (tmp_path / "train" / name).mkdir(parents=True)
    image.save(tmp_path / "train" / name / "0.png")
  folder = folders.find_images(tmp_path, "train")
  batches = train(folder, 40, batch_size=3, resolution=16)
  crops = np.concatenate([batch["image"] for batch in batches]).astype(float)
  # Values are coordinates, so slopes are pixels of the image to one of a crop.
  x, y = crops[:, 8, :, 0], crops[:, :, 8, 1]
  width = np.abs(x[:, 12] - x[:, 3]) / 9 * 16
  height = (y[:, 12] - y[:, 3]) / 9 * 16
  area, aspect = width * height / (240 * 200), width / height
  assert area.min() > 0.06 and area.min() < 0.2
  assert area.max() < 1.03 and area.max() > 0.8
  assert aspect.min() > 0.7 and aspect.min() < 0.8
  assert aspect.max() < 1.43 and aspect.max() > 1.25
  mirrored = np.mean(x[:, 12] < x[:, 3])
  assert 0.35 < mirrored < 0.65


def test_boxes_are_spread_as_rejection_says():
  random = np.random.default_rng(0)
  boxes = np.array([folders.random_box(random, 800, 600) for _ in range(4000)])
  left, top, right, bottom = boxes.T
  assert boxes.min() == 0 and right.max() == 800 and bottom.max() == 600
  share = (right - left) * (bottom - top) / (800 * 600)
  area, log_aspect = np.meshgrid(
    np.linspace(0.08, 1, 1001), np.linspace(-1, 1, 1001) * math.log(4 / 3)
  )
  area_of_800_600, aspect = area * 800 * 600, np.exp(log_aspect)
  fits = (area_of_800_600 * aspect <= 800**2) & (
    area_of_800_600 / aspect <= 600**2
  )
  assert share.mean() == pytest.approx(area[fits].mean(), abs=0.015)
  room = 800 - (right - left)
  assert np.mean(left[room > 50] / room[room > 50]) == pytest.approx(
    0.5, abs=0.02
  )


@pytest.mark.parametrize(
  ("size", "box"),
  [((1000, 12), (492, 0, 508, 12)), ((12, 1000), (0, 492, 12, 508))],
)
def test_where_no_box_fits_it_is_the_center(size, box):
  assert folders.random_box(np.random.default_rng(0), *size) == box


def test_evaluation_reads_each_image_once_and_fills_up(folder):
  batches = evaluate(folder)
  assert [batch["image"].shape for batch in batches] == [(5, 8, 8, 3)] * 3
  assert numbers(batches)[:IMAGES] == list(range(IMAGES))
  labels = np.concatenate([batch["label"] for batch in batches])
  assert labels.tolist() == [*folder.labels, -1, -1, -1]
  assert labels.dtype == np.int32
  assert not batches[-1]["image"][2:].any()
  assert [batch["skipped"] for batch in batches] == [0, 0, 0]


@pytest.mark.slow
def test_processes_evaluate_as_many_batches_each(folder):
  shares = [
    evaluate(folder, batch_size=8, process_index=index, process_count=4)
    for index in range(4)
  ]
  assert [len(share) for share in shares] == [2] * 4
  found = [
    number
    for share in shares
    for batch in share
    for number, label in zip(numbers([batch]), batch["label"])
    if label >= 0
  ]
  assert sorted(found) == list(range(IMAGES))


def test_evaluation_takes_the_center(folder):
  random = np.random.default_rng(0)
  image = Image.fromarray(random.integers(0, 256, (24, 20, 3), np.uint8))
  path = folder.paths[0].with_suffix(".png")
  image.save(path)
  found = evaluate(folder._replace(paths=[path]), resolution=14)[0]["image"][0]
  # 14 / 224 * 256 is 16; 19 by 14 leaves 5, of which Python rounds half to 2.
  expected = image.resize((16, 19), Image.Resampling.BILINEAR).crop(
    (1, 2, 15, 16)
  )
  np.testing.assert_allclose(found, np.asarray(expected, float), atol=1)


def test_a_large_photo_decoded_small_looks_the_same(folder):
  random = np.random.default_rng(0)
  image = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
  image.resize((1203, 901)).save(folder.paths[0], quality=95)
  found = evaluate(folder, resolution=28)[0]["image"][0]
  with Image.open(folder.paths[0]) as image:
    expected = image.resize((42, 32), Image.Resampling.BILINEAR)
  expected = np.asarray(expected.crop((7, 2, 35, 30)), float)
  np.testing.assert_allclose(found, expected, atol=4)
  assert np.abs(found - expected).mean() < 1


def test_grey_and_transparent_images_become_colored(folder):
  Image.new("L", (20, 24), 100).save(folder.paths[0])
  path = folder.paths[1].with_suffix(".png")
  Image.new("RGBA", (20, 24), (10, 20, 30, 128)).save(path)
  paths = [folder.paths[0], path]
  images = evaluate(folder._replace(paths=paths), batch_size=2)[0]["image"]
  assert (images[0] == 100).all()
  assert (images[1] == [10, 20, 30]).all()


@pytest.mark.parametrize(
  "spoil", [truncate, write_text, write_postscript, enlarge]
)
def test_a_broken_image_is_named(folder, monkeypatch, spoil):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
  spoil(folder.paths[5])
  for read in (evaluate, lambda folder: train(folder, 3)):
    with pytest.raises(
      ValueError, match="bee/1.jpg is broken: (?!.*Ghostscript)"
    ):
      read(folder)


@pytest.mark.parametrize("spoil", [truncate, write_text])
def test_a_broken_image_is_replaced_by_the_next(folder, caplog, spoil):
  spoil(folder.paths[5])
  sound, skipping = (
    train(
      folder._replace(
        paths=[*folder.paths[:5], folder.paths[6], *folder.paths[6:]]
      ),
      3,
    ),
    train(folder, 3, skip_broken=True),
  )
  assert sorted(numbers(skipping)) == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11]
  for batch, other in zip(sound, skipping):
    np.testing.assert_array_equal(batch["image"], other["image"])
  assert sum(batch["skipped"] for batch in skipping) == 1
  assert len(caplog.records) == 1
  assert "bee/1.jpg is broken" in caplog.text


def test_the_label_is_that_of_the_image_that_is_read(folder):
  truncate(folder.paths[3])
  for batch in train(folder, 3, skip_broken=True):
    labels = folder.labels[numbers([batch])]
    np.testing.assert_array_equal(batch["label"], labels)


def test_too_many_broken_images_in_a_row_are_an_error(folder):
  for path in folder.paths:
    write_text(path)
  with pytest.raises(ValueError, match="is broken") as info:
    train(folder, 1, skip_broken=True)
  assert str(info.value).count("is broken") == folders.MOST_BROKEN


def test_a_broken_image_is_left_out_of_an_evaluation(folder, caplog):
  truncate(folder.paths[5])
  batches = evaluate(folder, skip_broken=True)
  labels = np.concatenate([batch["label"] for batch in batches])
  expected = [*folder.labels, -1, -1, -1]
  expected[5] = -1
  assert labels.tolist() == expected
  assert [batch["skipped"] for batch in batches] == [0, 1, 0]
  assert "bee/1.jpg is broken" in caplog.text


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"batch_size": 13}, "batch_size is 13, of 12 images"),
    ({"process_count": 3}, "multiple of process_count, 3, got 4"),
    ({"process_index": 1}, "process_index must be below process_count, 1"),
    ({"resolution": 0}, "resolution must be at least 1"),
    ({"workers": -1}, "workers must be at least 0"),
    ({"start": -1}, "start must be at least 0, got -1"),
    ({"seed": 2**32}, "seed must be in 0 to"),
  ],
)
def test_arguments_out_of_range_are_errors_at_once(folder, options, message):
  options = {"start": 0} | options
  with pytest.raises(ValueError, match=message):
    train(folder, 0, **options)
